# SPDX-License-Identifier: Apache-2.0
"""An InferenceService for KServe 0.16 or later, with its Triton runtime, as plain pods ("Standard" deployments).

Not as Knative's: those refuse a volume at /tmp, and without one the Python backend cannot start where the root file
system is read-only.
"""

from __future__ import annotations

from typing import Any

from . import kubernetes_pod
from .kubernetes_pod import QUEUE_METRIC
from .kubernetes_settings import Deployment, Ports

PORTS = Ports(http=8080, grpc=9000, metrics=8002)
"""What KServe's runtime has its servers listen on."""

_COMPONENT = "predictor"
_CPU_PERCENT = 80


def inference_service(deployment: Deployment) -> dict[str, Any]:
    """The InferenceService (serving.kserve.io/v1beta1) of a repository.

    It scales by the requests that wait in the servers where `deployment.prometheus` says whom KEDA may ask for them,
    else by CPU: KServe makes a HorizontalPodAutoscaler of no other metric.
    """
    annotations = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "keda" if deployment.prometheus else "hpa",
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {**kubernetes_pod.metadata(deployment, _COMPONENT), "annotations": annotations},
        "spec": {
            "predictor": {
                "minReplicas": deployment.replicas_min,
                "maxReplicas": deployment.replicas_max,
                **_scaling(deployment),
                "labels": kubernetes_pod.labels(deployment, _COMPONENT),
                "annotations": kubernetes_pod.scraping(PORTS),
                "deploymentStrategy": kubernetes_pod.rolling_update(),
                **kubernetes_pod.pod(deployment, _COMPONENT),
                "model": _model(deployment),
            }
        },
    }


def _scaling(deployment: Deployment) -> dict[str, Any]:
    if deployment.prometheus is None:
        return {"scaleMetric": "cpu", "scaleTarget": _CPU_PERCENT}
    # KServe names the pods NAME-predictor-...; KEDA divides the sum among them.
    where = [f'pod=~"{deployment.name}-predictor-.+"']
    if deployment.namespace:
        where.insert(0, f'namespace="{deployment.namespace}"')
    metric = {
        "backend": "prometheus",
        "serverAddress": deployment.prometheus,
        "query": f"sum({QUEUE_METRIC}{{{','.join(where)}}})",
    }
    target = {"type": "Value", "value": str(deployment.queue_target)}
    return {"autoScaling": {"metrics": [{"type": "External", "external": {"metric": metric, "target": target}}]}}


def _model(deployment: Deployment) -> dict[str, Any]:
    # KServe puts this version in place of the image's tag; put in place of a digest it would spoil the name.
    version = {"runtimeVersion": deployment.tag} if deployment.tag else {}
    return {
        "modelFormat": {"name": "triton"},
        "runtime": "kserve-tritonserver",
        **version,
        "protocolVersion": "v2",
        "storageUri": deployment.storage,
        "args": [f"--exit-timeout-secs={deployment.exit_seconds}"],  # after the runtime's own arguments
        **kubernetes_pod.container(deployment, PORTS),
    }

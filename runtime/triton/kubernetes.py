# SPDX-License-Identifier: Apache-2.0
"""Servers of a model repository in Kubernetes, with KServe or without, as manifests that `kubectl apply` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...output import writing
from . import kserve, kubernetes_pod
from .kubernetes_pod import QUEUE_METRIC
from .kubernetes_settings import Deployment

_COMPONENT = "server"
_REPOSITORY = "/models"


def deployment_objects(deployment: Deployment) -> tuple[dict[str, Any], ...]:
    """A Deployment (apps/v1), its Service (v1) and its HorizontalPodAutoscaler (autoscaling/v2)."""
    return _deployment(deployment), _service(deployment), _autoscaler(deployment)


def prometheus_adapter_values() -> dict[str, Any]:
    """Values of the Helm chart prometheus-adapter, by which Kubernetes knows the queue of each pod.

    They want Prometheus to label a series with the namespace and the pod that it is from, as its own chart does.
    """
    rule = {
        "seriesQuery": f'{QUEUE_METRIC}{{namespace!="",pod!=""}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
    }
    return {"rules": {"custom": [rule]}}


def write(folder: Path, deployment: Deployment) -> tuple[Path, ...]:
    """Write inferenceservice.yaml, deployment.yaml and prometheus-adapter.yaml, in place of files of those names.

    Returns:
        The paths of the files.

    Raises:
        OutputError: the folder cannot be written.
    """
    files = {
        "inferenceservice.yaml": (_about_kserve(deployment), (kserve.inference_service(deployment),)),
        "deployment.yaml": (_about_deployment(deployment), deployment_objects(deployment)),
        "prometheus-adapter.yaml": (_about_adapter(), (prometheus_adapter_values(),)),
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, (about, objects) in files.items():
            (folder / name).write_text(_yaml(about, objects), encoding="utf-8")
    return tuple(folder / name for name in files)


def _deployment(deployment: Deployment) -> dict[str, Any]:
    labels = kubernetes_pod.labels(deployment, _COMPONENT)
    template = {
        "metadata": {"labels": labels, "annotations": kubernetes_pod.scraping(deployment.ports)},
        "spec": _pod(deployment),
    }
    # No replicas: applied again, the file would undo what the autoscaler has done.
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": kubernetes_pod.metadata(deployment, _COMPONENT),
        "spec": {
            "selector": {"matchLabels": kubernetes_pod.labels(deployment, _COMPONENT)},
            "strategy": kubernetes_pod.rolling_update(),
            "progressDeadlineSeconds": deployment.startup_seconds + 120,  # and the time to fetch the image
            "template": template,
        },
    }


def _pod(deployment: Deployment) -> dict[str, Any]:
    ports = deployment.ports
    # The whole claim is mounted, and the path left to the server: a mount of the path alone would keep to the folder
    # that was there when the pod started, after another was put in its place.
    repository = deployment.storage if deployment.claim is None else _REPOSITORY + deployment.path
    server = {
        "name": "tritonserver",
        "args": [
            "tritonserver",
            f"--model-repository={repository}",
            f"--http-port={ports.http}",
            f"--grpc-port={ports.grpc}",
            f"--metrics-port={ports.metrics}",
            f"--exit-timeout-secs={deployment.exit_seconds}",
        ],
        **kubernetes_pod.container(deployment, ports),
    }
    pod = kubernetes_pod.pod(deployment, _COMPONENT)
    if deployment.claim is not None:
        claim = {"claimName": deployment.claim, "readOnly": True}
        pod["volumes"].append({"name": "repository", "persistentVolumeClaim": claim})
        server["volumeMounts"].append({"name": "repository", "mountPath": _REPOSITORY, "readOnly": True})
    return {**pod, "containers": [server]}


def _service(deployment: Deployment) -> dict[str, Any]:
    ports = deployment.ports
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": kubernetes_pod.metadata(deployment, _COMPONENT),
        "spec": {
            "selector": kubernetes_pod.labels(deployment, _COMPONENT),
            "ports": [
                {"name": "http", "port": ports.http, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"},
                # The standard name of HTTP/2 without TLS, which gateways and meshes balance by request.
                {
                    "name": "grpc",
                    "port": ports.grpc,
                    "targetPort": "grpc",
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/h2c",
                },
                {"name": "metrics", "port": ports.metrics, "targetPort": "metrics", "protocol": "TCP"},
            ],
        },
    }


def _autoscaler(deployment: Deployment) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": str(deployment.queue_target)}
    # A queue is gone in seconds, and a new pod takes minutes: one less a minute, after five quiet ones.
    slowly = {"stabilizationWindowSeconds": 300, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": kubernetes_pod.metadata(deployment, _COMPONENT),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name},
            "minReplicas": deployment.replicas_min,
            "maxReplicas": deployment.replicas_max,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": QUEUE_METRIC}, "target": target}}],
            "behavior": {"scaleDown": slowly},
        },
    }


def _about_kserve(deployment: Deployment) -> list[str]:
    if deployment.prometheus:
        scaling = f"KEDA must be installed; it asks {deployment.prometheus} for the queues of the servers."
    else:
        scaling = "It scales by CPU. To scale by the queue, KServe needs KEDA and the address of Prometheus."
    return [
        "With KServe 0.16 or later. Apply: kubectl apply -f inferenceservice.yaml",
        scaling,
        *_about_bucket(
            deployment, "make a secret and a service account as KServe describes, and add its serviceAccountName"
        ),
    ]


def _about_deployment(deployment: Deployment) -> list[str]:
    kubectl = f"kubectl --namespace {deployment.namespace}" if deployment.namespace else "kubectl"
    name, http = deployment.name, deployment.ports.http
    keys = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION"
    if deployment.storage.startswith("gs://"):
        credentials = "bind the service account of the pods to one that may read the bucket (workload identity)"
    else:
        credentials = f"{kubectl} set env deployment/{name} --from=secret/NAME, with {keys}"
    return [
        "Without KServe. Apply: kubectl apply -f deployment.yaml",
        f"The autoscaler needs {QUEUE_METRIC} of each pod; see prometheus-adapter.yaml.",
        *_about_bucket(deployment, credentials),
        f"After a change of the repository: {kubectl} rollout restart deployment/{name}",
        f"To reach it at http://localhost:{http}: {kubectl} port-forward service/{name} {http}",
        *[f"Check then: curl --fail http://localhost:{http}/v2/models/{model}/ready" for model in deployment.models],
        "A client of gRPC keeps to the pod that it first reached; a mesh or gateway spreads its requests.",
    ]


def _about_bucket(deployment: Deployment, how: str) -> list[str]:
    return [] if deployment.claim else [f"To read {deployment.storage}: {how}."]


def _about_adapter() -> list[str]:
    return [
        "So that an autoscaler can ask Prometheus for the queue of each pod. Apply:",
        "  helm repo add prometheus-community https://prometheus-community.github.io/helm-charts",
        "  helm upgrade --install prometheus-adapter prometheus-community/prometheus-adapter \\",
        "    --set prometheus.url=http://PROMETHEUS --set prometheus.port=80 --values prometheus-adapter.yaml",
        f"Check: kubectl get --raw '/apis/custom.metrics.k8s.io/v1beta1/namespaces/NAMESPACE/pods/*/{QUEUE_METRIC}'",
    ]


def _yaml(about: list[str], objects: tuple[dict[str, Any], ...]) -> str:
    head = "".join(f"# {line}\n" for line in about)
    # Every object is made anew, so that none is written as a reference to another, which few readers know.
    text: str = yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True, width=120)
    return head + text

# SPDX-License-Identifier: Apache-2.0
"""A pod with one Triton Inference Server, as a Deployment of ours and an InferenceService of KServe's both want it.

What a server must be able to write was tried with Triton 2.51, as user 1000 without capabilities and with a root file
system that is read-only: /tmp, without which the Python backend ends the process, and /dev/shm, without which its
models do not load.
"""

from __future__ import annotations

from typing import Any

from .kubernetes_settings import Deployment, Ports

QUEUE_METRIC = "nv_inference_pending_request_count"
"""A gauge for each model. An ensemble's own is 0, since the requests wait in its models: a sum counts each once."""

USER = 1000
"""triton-server in NVIDIA's images."""

_DRAIN_SECONDS = 10
_READY = "/v2/health/ready"
_LIVE = "/v2/health/live"


def labels(deployment: Deployment, component: str) -> dict[str, str]:
    """What the objects of a component are found by."""
    return {
        "app.kubernetes.io/name": "tritonserver",
        "app.kubernetes.io/instance": deployment.name,
        "app.kubernetes.io/component": component,
    }


def metadata(deployment: Deployment, component: str) -> dict[str, Any]:
    """Name, namespace and labels of an object."""
    namespace = {"namespace": deployment.namespace} if deployment.namespace else {}
    managed = {"app.kubernetes.io/managed-by": "metaformer-export"}
    return {"name": deployment.name, **namespace, "labels": {**labels(deployment, component), **managed}}


def scraping(ports: Ports) -> dict[str, str]:
    """Annotations of a pod by which Prometheus finds its metrics."""
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(ports.metrics),
        "prometheus.io/path": "/metrics",
    }


def pod(deployment: Deployment, component: str) -> dict[str, Any]:
    """A pod's specification without its containers and without the volume of a repository."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels(deployment, component)},
    }
    # Nodes with GPUs are commonly closed to pods that do not say so.
    gpu_nodes = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _DRAIN_SECONDS + deployment.exit_seconds + 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [spread],
        **({"tolerations": gpu_nodes} if deployment.gpus else {}),
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": deployment.scratch}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": deployment.shared_memory}},
        ],
    }


def container(deployment: Deployment, ports: Ports) -> dict[str, Any]:
    """The server's container without its name and arguments."""
    return {
        "image": deployment.image,
        "env": [{"name": "HOME", "value": "/tmp"}],  # where libraries keep caches
        "ports": [
            {"name": "http", "containerPort": ports.http, "protocol": "TCP"},
            {"name": "grpc", "containerPort": ports.grpc, "protocol": "TCP"},
            {"name": "metrics", "containerPort": ports.metrics, "protocol": "TCP"},
        ],
        "resources": {"requests": _resources(deployment), "limits": _resources(deployment)},
        **_probes(deployment),
        # New connections keep coming until every node knows that the pod is leaving.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_DRAIN_SECONDS)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def rolling_update() -> dict[str, Any]:
    """Never fewer pods than wanted; one more while it rolls, which wants a free GPU."""
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def _resources(deployment: Deployment) -> dict[str, str]:
    # Requests equal to limits: the node evicts such a pod last.
    gpus = {"nvidia.com/gpu": str(deployment.gpus)} if deployment.gpus else {}
    return {"cpu": deployment.cpu, "memory": deployment.memory, **gpus}


def _probes(deployment: Deployment) -> dict[str, Any]:
    period = 5
    # A server of an empty repository says that it is ready, so the first probe asks for a model by its name.
    loaded = f"/v2/models/{deployment.models[0]}/ready" if deployment.models else _READY
    return {
        "startupProbe": _probe(loaded, period, failures=-(-deployment.startup_seconds // period)),
        "readinessProbe": _probe(_READY, period, failures=3),
        "livenessProbe": _probe(_LIVE, 2 * period, failures=3),
    }


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    get = {"path": path, "port": "http"}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}

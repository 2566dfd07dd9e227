# SPDX-License-Identifier: Apache-2.0
"""Manifests fit the schemas of Kubernetes and KServe, which refuse what is not theirs, and do what they say."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from install_tritonserver import TRITONSERVER
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource
from tritonserver import needs_tritonserver

from metaformer_export.errors import InputError, OutputError
from metaformer_export.runtime.triton import kserve
from metaformer_export.runtime.triton.kserve import inference_service
from metaformer_export.runtime.triton.kubernetes import deployment_objects, prometheus_adapter_values, write
from metaformer_export.runtime.triton.kubernetes_settings import Deployment, Ports, kubernetes_name, quantity

OLDEST, NEWEST = "1.25", "1.37"
METRIC = "nv_inference_pending_request_count"

ON_GPU = Deployment(
    name="hornet-t",
    image="registry.example:5000/vision/serve:26.10",
    storage="pvc://models/shared/repository",
    models=("hornet_t_ensemble", "hornet_t"),
    gpus=2,
    queue_target=24,
    replicas_min=2,
    replicas_max=9,
    namespace="vision",
    ports=Ports(http=9000, grpc=9001, metrics=9002),
    prometheus="http://prometheus-server.monitoring:80",
)
ON_CPU = Deployment(name="poolformer-s12", image="serve:26.10", storage="s3://bucket/repository", gpus=0)
DEPLOYMENTS = pytest.mark.parametrize(
    "deployment",
    [ON_GPU, ON_CPU, replace(ON_CPU, storage="gs://bucket/a/b"), replace(ON_GPU, storage="pvc://models")],
    ids=["gpu", "cpu", "gs", "whole-claim"],
)


def _container(deployment: Deployment) -> dict[str, Any]:
    (container,) = deployment_objects(deployment)[0]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def _predictor(deployment: Deployment) -> dict[str, Any]:
    return dict(inference_service(deployment)["spec"]["predictor"])


def _both(deployment: Deployment) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The pod and the container of the Deployment and of the InferenceService."""
    pod = deployment_objects(deployment)[0]["spec"]["template"]["spec"]
    predictor = _predictor(deployment)
    return [(pod, _container(deployment)), (predictor, predictor["model"])]


@pytest.fixture(scope="module")
def kserve_schema() -> Draft202012Validator:
    """KServe's own fields from its package, Kubernetes' in them from kubernetes-validate; both refuse unknown ones."""
    schema = json.loads((Path(__file__).parent / "kserve_schema.json").read_text("utf-8"))
    folder = f"kubernetes-json-schema/v{NEWEST}.0-local-strict"
    definitions = Resource.from_contents(schema_contents(f"{folder}/_definitions.json", NEWEST))
    return Draft202012Validator(schema, registry=definitions @ Registry())


@DEPLOYMENTS
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_what_kubernetes_takes(deployment: Deployment, version: str) -> None:
    objects = deployment_objects(deployment)

    assert [each["kind"] for each in objects] == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    assert [kubernetes_validate.validate(each, version, strict=True) for each in objects] == [version] * 3


def _set(path: str, value: Any, target: dict[str, Any]) -> dict[str, Any]:
    """A copy of an object with another value at a path such as spec|ports|0|name; None takes the field away."""
    changed = copy.deepcopy(target)
    *way, last = [int(step) if step.isdigit() else step for step in path.split("|")]
    at: Any = changed
    for step in way:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return changed


@pytest.mark.parametrize(
    ("index", "path", "value"),
    [
        (0, "spec|template|spec|containers|0|readinesProbe", {}),
        (0, "spec|template|spec|containers|0|ports|0|containerPort", "8000"),
        (0, "spec|template|spec|containers|0|securityContext|readOnlyRootFilesystem", "yes"),
        (0, "spec|template|spec|containers|0|startupProbe|httpGet|path", 8),
        (0, "spec|template|spec|volumes|1|emptyDir|medum", "Memory"),
        (0, "spec|selector", None),
        (0, "spec|replica", 2),
        (1, "spec|ports|0|port", None),
        (1, "spec|selectors", {}),
        (2, "spec|metrics|0|pods|target", None),
        (2, "spec|maxReplicas", "9"),
        (2, "spec|behavior|scaleDown|policies|0|periodSeconds", None),
    ],
)
def test_kubernetes_schemas_refuse_what_is_not_theirs(index: int, path: str, value: Any) -> None:
    broken = _set(path, value, deployment_objects(ON_GPU)[index])

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


@DEPLOYMENTS
def test_inference_service_is_what_kserve_takes(deployment: Deployment, kserve_schema: Draft202012Validator) -> None:
    made = inference_service(deployment)

    assert (made["apiVersion"], made["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert [error.message for error in kserve_schema.iter_errors(made)] == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec|predictor", None, "'predictor' is a required property"),
        ("spec|predictor|model|modelFormat", None, "'modelFormat' is a required property"),
        ("spec|predictor|minReplica", 1, "'minReplica' was unexpected"),
        ("spec|predictor|minReplicas", "2", "'2' is not of type 'integer'"),
        ("spec|predictor|model|storageURI", "s3://bucket", "'storageURI' was unexpected"),
        ("spec|predictor|model|runtimeVersion", 26.1, "26.1 is not of type 'string'"),
        ("spec|predictor|autoScaling|metrics|0|external|target", None, "'target' is a required property"),
        ("spec|predictor|autoScaling|metrics|0|external|metric|address", "", "'address' was unexpected"),
        # Within types of Kubernetes itself.
        ("spec|predictor|model|livenessProbe|httpGet|port", None, "'port' is a required property"),
        ("spec|predictor|model|securityContext|runAsNonroot", True, "'runAsNonroot' was unexpected"),
        ("spec|predictor|volumes|0|emptyDir|size", "1Gi", "'size' was unexpected"),
    ],
)
def test_kserve_schema_refuses_what_is_not_its(
    path: str, value: Any, said: str, kserve_schema: Draft202012Validator
) -> None:
    broken = _set(path, value, inference_service(ON_GPU))

    (error,) = kserve_schema.iter_errors(broken)
    assert said in error.message


def test_selectors_find_the_pods_and_no_others() -> None:
    deployment, service, _ = deployment_objects(ON_GPU)
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    pod = deployment["spec"]["template"]["spec"]
    of_kserve = _predictor(ON_GPU)
    of_another = deployment_objects(replace(ON_GPU, name="hornet-s"))[0]["spec"]["template"]["metadata"]["labels"]

    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert service["spec"]["selector"].items() <= labels
    assert pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].items() <= labels
    assert not service["spec"]["selector"].items() <= of_kserve["labels"].items()
    assert not service["spec"]["selector"].items() <= of_another.items()
    spread = of_kserve["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
    assert spread.items() <= of_kserve["labels"].items()


def test_every_object_is_in_the_namespace_asked_for() -> None:
    made = [*deployment_objects(ON_GPU), inference_service(ON_GPU)]
    elsewhere = [*deployment_objects(ON_CPU), inference_service(ON_CPU)]

    assert {(each["metadata"]["name"], each["metadata"]["namespace"]) for each in made} == {("hornet-t", "vision")}
    assert [each for each in elsewhere if "namespace" in each["metadata"]] == []


def test_service_reaches_the_ports_that_the_server_listens_on() -> None:
    deployment, service, _ = deployment_objects(ON_GPU)
    container = _container(ON_GPU)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]

    assert ports == {"http": 9000, "grpc": 9001, "metrics": 9002}
    assert {each["port"]: ports[each["targetPort"]] for each in service["spec"]["ports"]} == {
        9000: 9000,
        9001: 9001,
        9002: 9002,
    }
    assert {f"--{name}-port={port}" for name, port in ports.items()} <= set(container["args"])
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9002",
        "prometheus.io/path": "/metrics",
    }


def test_probes_ask_for_the_model_then_for_the_server() -> None:
    for _, container in _both(replace(ON_GPU, startup_seconds=601)):
        asked = {kind: container[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
        assert asked == {
            "startupProbe": {"path": "/v2/models/hornet_t_ensemble/ready", "port": "http"},
            "readinessProbe": {"path": "/v2/health/ready", "port": "http"},
            "livenessProbe": {"path": "/v2/health/live", "port": "http"},
        }
        assert "http" in [port["name"] for port in container["ports"]]
        startup = container["startupProbe"]
        assert startup["failureThreshold"] * startup["periodSeconds"] == 605
    assert _container(ON_CPU)["startupProbe"]["httpGet"]["path"] == "/v2/health/ready"


def test_a_rollout_is_given_longer_than_a_pod_takes_to_start() -> None:
    spec = deployment_objects(replace(ON_GPU, startup_seconds=1800))[0]["spec"]

    assert spec["progressDeadlineSeconds"] == 1920
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_pods_run_under_the_restricted_security_standard() -> None:
    for pod, container in _both(ON_GPU):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["automountServiceAccountToken"] is False


def test_only_temporary_files_and_shared_memory_can_be_written() -> None:
    for pod, container in _both(ON_GPU):
        volumes = {each["name"]: each for each in pod["volumes"]}
        writable = {
            each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"] if not each.get("readOnly")
        }

        assert {each["name"] for each in container["volumeMounts"]} == set(volumes)
        assert writable == {
            "/tmp": {"name": "scratch", "emptyDir": {"sizeLimit": "4Gi"}},
            "/dev/shm": {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        }


def test_requests_are_the_limits_with_gpus_where_wanted() -> None:
    for pod, container in _both(ON_GPU):
        assert container["resources"]["limits"] == {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "2"}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    for pod, container in _both(ON_CPU):
        assert container["resources"]["limits"] == {"cpu": "4", "memory": "8Gi"}
        assert "tolerations" not in pod


def test_requests_under_way_end_before_the_pod_is_killed() -> None:
    for pod, container in _both(replace(ON_GPU, exit_seconds=90)):
        drained = int(container["lifecycle"]["preStop"]["exec"]["command"][1])

        assert "--exit-timeout-secs=90" in container["args"]
        assert (drained, pod["terminationGracePeriodSeconds"]) == (10, 105)


def test_autoscaler_adds_pods_where_more_than_the_target_wait() -> None:
    deployment, _, autoscaler = deployment_objects(ON_GPU)
    spec = autoscaler["spec"]
    (metric,) = spec["metrics"]

    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hornet-t"}
    assert {key: deployment[key] for key in ("apiVersion", "kind")}.items() <= spec["scaleTargetRef"].items()
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 9)
    assert metric == {
        "type": "Pods",
        "pods": {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": "24"}},
    }
    assert "replicas" not in deployment["spec"], "which an apply would set back"


def test_prometheus_adapter_sums_the_queues_of_the_models_of_each_pod() -> None:
    (rule,) = prometheus_adapter_values()["rules"]["custom"]
    asked = rule["metricsQuery"]
    for placeholder, text in {
        "<<.Series>>": METRIC,
        "<<.LabelMatchers>>": 'namespace="vision",pod=~"hornet-t-a|hornet-t-b"',
        "<<.GroupBy>>": "pod",
    }.items():
        asked = asked.replace(placeholder, text)

    assert rule["seriesQuery"] == f'{METRIC}{{namespace!="",pod!=""}}'
    assert rule["resources"]["overrides"] == {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
    assert asked == f'sum({METRIC}{{namespace="vision",pod=~"hornet-t-a|hornet-t-b"}}) by (pod)'


@pytest.mark.parametrize(
    ("storage", "read", "claim"),
    [
        ("pvc://models/shared/repository", "/models/shared/repository", "models"),
        ("pvc://models/", "/models", "models"),
        ("pvc://team.models", "/models", "team.models"),
        ("s3://bucket/repository", "s3://bucket/repository", None),
        ("gs://bucket", "gs://bucket", None),
    ],
)
def test_a_claim_is_mounted_read_only_and_a_bucket_left_to_the_server(
    storage: str, read: str, claim: str | None
) -> None:
    deployment = replace(ON_GPU, storage=storage)
    pod, container = _both(deployment)[0]
    claims = [each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
    mounts = [each for each in container["volumeMounts"] if each["name"] == "repository"]

    assert container["args"][:2] == ["tritonserver", f"--model-repository={read}"]
    assert claims == ([{"claimName": claim, "readOnly": True}] if claim else [])
    assert mounts == ([{"name": "repository", "mountPath": "/models", "readOnly": True}] if claim else [])
    assert _predictor(deployment)["model"]["storageUri"] == storage


def test_inference_service_takes_the_triton_runtime_and_its_ports() -> None:
    model = _predictor(ON_GPU)["model"]

    assert (model["modelFormat"], model["runtime"]) == ({"name": "triton"}, "kserve-tritonserver")
    assert model["protocolVersion"] == "v2"
    assert {each["name"]: each["containerPort"] for each in model["ports"]} == {
        "http": 8080,
        "grpc": 9000,
        "metrics": 8002,
    }
    assert _predictor(ON_GPU)["annotations"]["prometheus.io/port"] == str(kserve.PORTS.metrics) == "8002"


def test_inference_service_keeps_the_version_of_the_image() -> None:
    digest = "sha256:" + 64 * "0"
    by_digest = [f"serve@{digest}", f"serve:26.10@{digest}"]

    assert _predictor(ON_GPU)["model"]["runtimeVersion"] == "26.10"
    for image in by_digest:
        model = _predictor(replace(ON_GPU, image=image))["model"]
        assert model["image"] == image
        assert "runtimeVersion" not in model


def test_inference_service_scales_by_the_queue_where_prometheus_is_known() -> None:
    made = inference_service(ON_GPU)
    predictor = made["spec"]["predictor"]
    ((metric,),) = predictor["autoScaling"].values()

    assert made["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    assert metric["external"]["metric"] == {
        "backend": "prometheus",
        "serverAddress": "http://prometheus-server.monitoring:80",
        "query": f'sum({METRIC}{{namespace="vision",pod=~"hornet-t-predictor-.+"}})',
    }
    assert metric["external"]["target"] == {"type": "Value", "value": "24"}
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 9)
    assert "scaleMetric" not in predictor, "which KServe refuses beside KEDA"


def test_inference_service_scales_by_cpu_otherwise() -> None:
    made = inference_service(ON_CPU)
    predictor = made["spec"]["predictor"]

    assert made["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "hpa",
    }
    assert (predictor["scaleMetric"], predictor["scaleTarget"]) == ("cpu", 80)
    assert "autoScaling" not in predictor


def test_files_say_how_to_apply_them_and_hold_the_objects(tmp_path: Path) -> None:
    paths = write(tmp_path / "kubernetes", ON_GPU)
    texts = {path.name: path.read_text("utf-8") for path in paths}
    loaded = {name: list(yaml.safe_load_all(text)) for name, text in texts.items()}

    assert loaded == {
        "inferenceservice.yaml": [inference_service(ON_GPU)],
        "deployment.yaml": list(deployment_objects(ON_GPU)),
        "prometheus-adapter.yaml": [prometheus_adapter_values()],
    }
    for name, command in {
        "inferenceservice.yaml": "kubectl apply -f inferenceservice.yaml",
        "deployment.yaml": "kubectl apply -f deployment.yaml",
        "prometheus-adapter.yaml": "--values prometheus-adapter.yaml",
    }.items():
        head = texts[name].partition("---\n")[0]
        assert all(line.startswith("# ") for line in head.splitlines())
        assert command in head
        assert not re.search(r"[&*]id\d", texts[name]), "references in YAML, which few readers know"
        assert max(map(len, texts[name].splitlines())) <= 130
    assert "curl --fail http://localhost:9000/v2/models/hornet_t/ready" in texts["deployment.yaml"]
    assert "kubectl --namespace vision rollout restart deployment/hornet-t" in texts["deployment.yaml"]


def test_files_say_how_a_bucket_is_read_where_there_is_one(tmp_path: Path) -> None:
    heads = {}
    for storage in ("s3://bucket/repository", "gs://bucket/repository", "pvc://models"):
        _, path, _ = write(tmp_path, replace(ON_CPU, storage=storage))
        heads[storage[:2]] = path.read_text("utf-8").partition("---\n")[0]

    assert "kubectl set env deployment/poolformer-s12 --from=secret/NAME" in heads["s3"]
    assert "workload identity" in heads["gs"]
    assert "To read" not in heads["pv"]


def test_files_replace_those_of_an_earlier_run(tmp_path: Path) -> None:
    write(tmp_path, replace(ON_GPU, gpus=1, models=("a", "b", "c", "d")))
    fresh = write(tmp_path / "fresh", ON_CPU)

    for old, new in zip(write(tmp_path, ON_CPU), fresh, strict=True):
        assert old.read_bytes() == new.read_bytes()


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")

    with pytest.raises(OutputError, match="cannot be written: File exists"):
        write(taken, ON_CPU)


@needs_tritonserver
def test_a_real_server_knows_every_argument() -> None:
    told = subprocess.run([str(TRITONSERVER), "--help"], capture_output=True, text=True, check=False, timeout=60)
    known = set(re.findall(r"^\s+(--[\w-]+) <", told.stdout + told.stderr, flags=re.MULTILINE))
    used = {each.partition("=")[0] for _, container in _both(ON_GPU) for each in container["args"][-5:]}

    assert len(known) > 50
    assert used == {
        *("--model-repository", "--http-port", "--grpc-port", "--metrics-port", "--exit-timeout-secs"),
    }
    assert used <= known


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("hornet_t", "hornet-t"),
        ("HorNet_L_GF384", "hornet-l-gf384"),
        ("a..b__c-", "a-b-c"),
        ("x" * 53, "x" * 53),
    ],
)
def test_a_name_for_kubernetes_is_made_of_a_models(model: str, name: str) -> None:
    assert kubernetes_name(model) == name
    assert Deployment(name=name, image="serve:1", storage="pvc://models").name == name


@pytest.mark.parametrize("model", ["", "___", "3d_net", "x" * 54])
def test_a_model_without_a_name_for_kubernetes_is_refused(model: str) -> None:
    with pytest.raises(InputError, match="cannot be one in Kubernetes; use a letter"):
        kubernetes_name(model)


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", Fraction(4)), ("500m", Fraction(1, 2)), ("1.5Gi", Fraction(3 * 2**29)), ("2G", Fraction(2 * 10**9))],
)
def test_quantities_are_read_exactly(text: str, value: Fraction) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "Hornet", "name 'Hornet' cannot be one in Kubernetes"),
        ("name", "hornet-", "name 'hornet-' cannot be one in Kubernetes"),
        ("name", "hornet\n", "cannot be one in Kubernetes"),
        ("namespace", "my_models", "namespace 'my_models' cannot be one"),
        ("namespace", "x" * 64, "cannot be one; use lower case"),
        ("models", ("hornet/t",), "model 'hornet/t' cannot be one"),
        ("models", ("hornet_t", ""), "model '' cannot be one"),
        ("image", "Serve:1", "image 'Serve:1' is not the name of one"),
        ("image", "serve:1 --rm", "is not the name of one"),
        ("image", "registry.example:5000/serve", "has no tag"),
        ("storage", "/models", "storage '/models' cannot be read by both"),
        ("storage", "pvc://", "storage 'pvc://' cannot be read by both"),
        ("storage", "pvc://Models/a", "cannot be read by both"),
        ("storage", "pvc://models/../other", "cannot be read by both"),
        ("storage", "pvc://models//a", "cannot be read by both"),
        ("storage", "s3://bucket/$(HOME)", "cannot be read by both"),
        ("storage", "s3://https://minio:9000/bucket", "cannot be read by both"),
        ("storage", "https://example.com/a", "cannot be read by both"),
        ("cpu", "four", "'four' is not a quantity"),
        ("cpu", "0", "cpu must be above 0"),
        ("memory", "-8Gi", "'-8Gi' is not a quantity"),
        ("memory", "8GB", "'8GB' is not a quantity"),
        ("memory", "8", "memory 8 must be above shared_memory 1Gi"),
        ("shared_memory", "8Gi", "memory 8Gi must be above shared_memory 8Gi"),
        ("scratch", "lots", "'lots' is not a quantity"),
        ("gpus", -1, "gpus must be a whole number, 0 or more; got -1"),
        ("gpus", True, "gpus must be a whole number, 0 or more; got True"),
        ("replicas_min", 0, "replicas_min must be a whole number, 1 or more"),
        ("replicas_max", 1, "replicas_max 1 is below replicas_min 2"),
        ("queue_target", 0.5, "queue_target must be a whole number, 1 or more"),
        ("startup_seconds", 0, "startup_seconds must be a whole number, 1 or more"),
        ("exit_seconds", -1, "exit_seconds must be a whole number, 0 or more"),
        ("ports", Ports(http=80), "ports must be three different ones from 1024"),
        ("ports", Ports(grpc=8000), "got 8000, 8000, 8002"),
        ("ports", Ports(metrics=65536), "ports must be three different ones"),
        ("ports", Ports(http=8000.5), "got 8000.5, 8001, 8002"),  # type: ignore[arg-type]
        ("prometheus", "prometheus:9090", "prometheus is an address such as"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(field: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        replace(ON_GPU, **{field: value})
    assert "\n" not in str(caught.value)

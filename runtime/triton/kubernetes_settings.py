# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of servers in a Kubernetes cluster, checked before anything is written."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from fractions import Fraction

from ...errors import InputError

LONGEST_NAME = 63 - len("-predictor")
"""KServe names a Service after the InferenceService, and a Service's name has 63 characters at most."""

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
# A Service's name may not start with a digit: RFC 1035 where RFC 1123 would allow one.
_NAME = re.compile(r"[a-z](?:[-a-z0-9]*[a-z0-9])?")
_NAMESPACE = re.compile(_LABEL)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Nothing that a shell, a URL or Kubernetes' own $(VARIABLE) would read as something else.
_PATH = r"(?:/[A-Za-z0-9_=+@-][A-Za-z0-9_.=+@-]*)*"
_CLAIM = re.compile(rf"pvc://(?P<claim>{_LABEL}(?:\.{_LABEL})*)(?P<path>{_PATH})/?")
_BUCKET = re.compile(rf"(?:s3|gs)://[a-z0-9][a-z0-9._-]{{1,61}}[a-z0-9]{_PATH}/?")
_COMPONENT = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_PROMETHEUS = re.compile(r"https?://[A-Za-z0-9.-]+(?::\d+)?(?:/[A-Za-z0-9._/-]*)?")
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>m|[kMGTPE]|[KMGTPE]i)?")
_UNITS = {
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000 ** (power + 1)) for power, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Fraction(1024 ** (power + 1)) for power, unit in enumerate("KMGTPE")},
}


@dataclass(frozen=True)
class Ports:
    """Where a server listens; the defaults are Triton's own."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Servers of one model repository: what they run, on what, and when there are more of them.

    Attributes:
        name: of every object; `kubernetes_name` makes one of a model's name.
        image: of a Triton Inference Server with what the models need, with a tag or a digest; its entry point runs the
            command that it is given, as NVIDIA's does.
        storage: the model repository: pvc://CLAIM/PATH, s3://BUCKET/PATH or gs://BUCKET/PATH.
        models: names of models in it, the one that clients ask first; no pod takes requests before that one is ready.
        gpus: of each pod; 0 for a CPU.
        cpu, memory: of each pod, as Kubernetes writes quantities; both what is requested and the limit.
        shared_memory: of that memory, what the models in Python may use to exchange tensors with the server.
        scratch: room on the node's disk for temporary files, and for the repository itself where it is in a bucket.
        replicas_min, replicas_max: pods.
        queue_target: requests that wait in a pod, on average, from which on there are more pods.
        namespace: None for the one that `kubectl` is set to.
        ports: of the server and the Service; KServe's runtime has its own.
        startup_seconds: what loading and warming up may take before the pod is given up.
        exit_seconds: what the requests of a server that stops may still take.
        prometheus: URL at which KEDA asks for the queues of an InferenceService; None scales that one by CPU.

    Raises:
        InputError: a value that cannot be.
    """

    name: str
    image: str
    storage: str
    models: tuple[str, ...] = ()
    gpus: int = 1
    cpu: str = "4"
    memory: str = "8Gi"
    shared_memory: str = "1Gi"
    scratch: str = "4Gi"
    replicas_min: int = 1
    replicas_max: int = 4
    queue_target: int = 16
    namespace: str | None = None
    ports: Ports = Ports()
    startup_seconds: int = 600
    exit_seconds: int = 30
    prometheus: str | None = None

    def __post_init__(self) -> None:
        _check_names(self)
        _check_storage(self.storage)
        _check_image(self.image)
        _check_quantities(self)
        _check_numbers(self)
        _check_ports(self.ports)
        if self.prometheus is not None and not _PROMETHEUS.fullmatch(self.prometheus):
            raise InputError(f"prometheus is an address such as http://prometheus-server:80; got {self.prometheus!r}.")

    @property
    def claim(self) -> str | None:
        """Name of the PersistentVolumeClaim that holds the repository; None where a bucket does."""
        match = _CLAIM.fullmatch(self.storage)
        return match["claim"] if match else None

    @property
    def path(self) -> str:
        """Of the repository in the claim: "" or a path that starts with a slash."""
        match = _CLAIM.fullmatch(self.storage)
        return match["path"] if match else ""

    @property
    def tag(self) -> str | None:
        """The image's; None where a digest says which image it is."""
        match = _IMAGE.fullmatch(self.image)
        return match["tag"] if match and not match["digest"] else None


def kubernetes_name(model: str) -> str:
    """The name of a model as Kubernetes allows one: hornet_t_gf becomes hornet-t-gf.

    Raises:
        InputError: nothing that may be a name is left, or too much.
    """
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    _check_name(name)
    return name


def quantity(text: str) -> Fraction:
    """The value of a Kubernetes quantity, exactly: 1Gi is 2**30, 500m a half.

    Raises:
        InputError: it is none.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a quantity of Kubernetes; write 4 or 500m for CPU, 8Gi for memory.")
    return Fraction(match["number"]) * _UNITS.get(match["unit"] or "", Fraction(1))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise InputError(
            f"name {name!r} cannot be one in Kubernetes; use a letter, then letters, digits and dashes, all lower "
            f"case, {LONGEST_NAME} at most."
        )


def _check_names(deployment: Deployment) -> None:
    _check_name(deployment.name)
    namespace = deployment.namespace
    if namespace is not None and (not _NAMESPACE.fullmatch(namespace) or len(namespace) > 63):
        raise InputError(f"namespace {namespace!r} cannot be one; use lower case letters, digits and dashes.")
    for model in deployment.models:
        if not _MODEL.fullmatch(model):
            raise InputError(f"model {model!r} cannot be one; use letters, digits, dots, dashes and underscores.")


def _check_storage(storage: str) -> None:
    if not (_CLAIM.fullmatch(storage) or _BUCKET.fullmatch(storage)):
        raise InputError(
            f"storage {storage!r} cannot be read by both KServe and a server; use pvc://CLAIM/PATH, s3://BUCKET/PATH "
            "or gs://BUCKET/PATH."
        )


def _check_image(image: str) -> None:
    match = _IMAGE.fullmatch(image)
    if match is None:
        raise InputError(f"image {image!r} is not the name of one; write REGISTRY/NAME:TAG.")
    if not (match["tag"] or match["digest"]):
        raise InputError(f"image {image} has no tag, and an engine loads in its own TensorRT only; write {image}:TAG.")


def _check_quantities(deployment: Deployment) -> None:
    for field in ("cpu", "memory", "shared_memory", "scratch"):
        if quantity(getattr(deployment, field)) <= 0:
            raise InputError(f"{field} must be above 0; got {getattr(deployment, field)}.")
    if quantity(deployment.memory) <= quantity(deployment.shared_memory):
        raise InputError(
            f"memory {deployment.memory} must be above shared_memory {deployment.shared_memory}, which is a part of it."
        )


def _check_numbers(deployment: Deployment) -> None:
    least = {
        "gpus": 0,
        "replicas_min": 1,
        "replicas_max": 1,
        "queue_target": 1,
        "startup_seconds": 1,
        "exit_seconds": 0,
    }
    for field, bound in least.items():
        value = getattr(deployment, field)
        if type(value) is not int or value < bound:
            raise InputError(f"{field} must be a whole number, {bound} or more; got {value!r}.")
    if deployment.replicas_max < deployment.replicas_min:
        raise InputError(
            f"replicas_max {deployment.replicas_max} is below replicas_min {deployment.replicas_min}; raise it."
        )


def _check_ports(ports: Ports) -> None:
    numbers = astuple(ports)
    # Below 1024 only root may listen, which the server is not.
    if len(set(numbers)) != len(numbers) or not all(type(port) is int and 1024 <= port <= 65535 for port in numbers):
        raise InputError(f"ports must be three different ones from 1024 to 65535; got {', '.join(map(str, numbers))}.")

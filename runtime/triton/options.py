# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of a model repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ...errors import InputError

Backend = Literal["auto", "tensorrt", "onnxruntime", "python"]
Device = Literal["auto", "cpu", "gpu"]
Accelerator = Literal["none", "cuda", "tensorrt", "openvino"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LARGEST: dict[str, float] = {
    "instances": 1000,
    "queue_seconds": 1e6,
    "queue_delay_ms": 1e6,
    "max_image_mb": 1e5,
    "max_megapixels": 1e5,
}
"""What the fields of a configuration have room for, and no server needs more of."""
_TYPED = {"queue_seconds": "--queue-timeout", "queue_delay_ms": "--queue-delay", "versions": "--version-policy"}
"""Options of the command line that are not named as the fields are."""
_VERSIONS = re.compile(r"all|latest:[1-9]\d{0,3}|specific:[1-9]\d{0,8}(,[1-9]\d{0,8})*")


@dataclass(frozen=True)
class RepositoryOptions:
    """How a model is to be served. The defaults suit a server of one model on one device.

    Attributes:
        name: of the model in the repository; "" for the export's short name.
        backend: what runs it: auto takes the engine if the folder has one, else ONNX Runtime's backend; python runs
            ONNX Runtime in the server's Python, for a server without that backend.
        device: where; auto lets the server take a GPU if it has one.
        accelerator: of ONNX Runtime's backend: CUDA or TensorRT on a GPU, OpenVINO on a CPU.
        accelerator_options: its settings, as that backend names them, for instance ("use_tf32", "0").
        instances: copies of the model on each device.
        top_k: classes that the ensemble answers with.
        labels: a file with the name of a class in each line; None for ImageNet's where there are 1000 classes.
        queue_seconds: a request that has waited longer is refused.
        queue_delay_ms: how long a request may wait for others to share its batch; None derives it from the latencies.
        versions: which the server has ready: latest:N, all, or specific:N,M.
        response_cache: answer an input that was seen before from the cache of a server that has one.
        cuda_graphs: have TensorRT's backend capture them for the usual batch sizes.
        max_image_mb, max_megapixels: a larger image is refused, encoded and decoded.

    Raises:
        InputError: a value that cannot be, or two that exclude each other.
    """

    name: str = ""
    backend: Backend = "auto"
    device: Device = "auto"
    accelerator: Accelerator = "none"
    accelerator_options: tuple[tuple[str, str], ...] = ()
    instances: int = 1
    top_k: int = 5
    labels: Path | None = None
    queue_seconds: float = 10.0
    queue_delay_ms: float | None = None
    versions: str = "latest:1"
    response_cache: bool = False
    cuda_graphs: bool = False
    max_image_mb: float = 20.0
    max_megapixels: float = 100.0

    def __post_init__(self) -> None:
        choices = {"backend": Backend, "device": Device, "accelerator": Accelerator}
        for field, known in choices.items():
            if (value := getattr(self, field)) not in get_args(known):
                raise InputError(f"--{field} {value!r} is not known; use {', '.join(get_args(known))}.")
        for field in ("instances", "top_k", "queue_seconds", "max_image_mb", "max_megapixels"):
            if not getattr(self, field) > 0:
                raise InputError(f"{_typed(field)} must be above 0; got {getattr(self, field)}.")
        if self.queue_delay_ms is not None and not self.queue_delay_ms >= 0:
            raise InputError(f"{_typed('queue_delay_ms')} must be 0 or more; got {self.queue_delay_ms}.")
        for field, largest in _LARGEST.items():
            if (getattr(self, field) or 0) > largest:
                raise InputError(f"{_typed(field)} is at most {largest:g}; got {getattr(self, field)}.")
        if self.name and not _NAME.fullmatch(self.name):
            raise InputError(f"--name takes letters, digits, dots, dashes and underscores; got {self.name!r}.")
        if not _VERSIONS.fullmatch(self.versions):
            raise InputError(f"{_typed('versions')} takes latest:N, all or specific:N,M; got {self.versions!r}.")
        if self.accelerator_options and self.accelerator == "none":
            raise InputError("--accelerator-option is for an accelerator; give --accelerator, too.")
        if (self.accelerator, self.device) in (("cuda", "cpu"), ("tensorrt", "cpu"), ("openvino", "gpu")):
            raise InputError(f"--accelerator {self.accelerator} does not go with --device {self.device}.")


def _typed(field: str) -> str:
    """As the command line calls a field."""
    return _TYPED.get(field, f"--{field.replace('_', '-')}")

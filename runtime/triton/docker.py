# SPDX-License-Identifier: Apache-2.0
"""The commands that serve a repository from a container, where there is no tritonserver."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from ...errors import MissingDependencyError
from ..tensorrt.environment import parse_version
from .containers import IMAGE, NEWEST, RELEASES, container_for
from .launching import ServerOptions, address, model_arguments
from .needs import Needs

OUR_IMAGE = "metaformer-export-serve"
"""The Dockerfile's target `serve`, tagged with the month of the container it is made from."""
_MODELS = "/models"
_SHARED_MEMORY = "1g"
"""Of Docker's own 64 MB, the Python backend takes one for each model at the start and more for each image."""
_PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
_ANY = ("0.0.0.0", "::")
"""Hosts that mean all addresses of a machine."""


@dataclass(frozen=True)
class DockerCommands:
    """Commands for a shell.

    Attributes:
        build: makes the image that models in Python need; "" where NVIDIA's own does.
        run: serves, until Ctrl-C.
    """

    build: str
    run: str


def docker_commands(repository: Path, needs: Needs, options: ServerOptions) -> DockerCommands:
    """For the container whose TensorRT is that of the repository's engines; the newest one without engines.

    Raises:
        MissingDependencyError: no container has that TensorRT, or engines are of several.
    """
    tag = _tag(needs)
    release = tag.removesuffix("-py3")
    image = f"{OUR_IMAGE}:{release}" if needs.python else f"{IMAGE}:{tag}"
    run = ["docker", "run", "--rm", *_gpus(needs)]
    for name, inside in _PORTS.items():
        port = getattr(options, name)
        run += ["-p", f"{port}:{inside}" if options.host in _ANY else f"{address(options.host, port)}:{inside}"]
    run += ["--shm-size", _SHARED_MEMORY, "-v", f"{repository.absolute()}:{_MODELS}:ro", image, "tritonserver"]
    run += model_arguments(_MODELS, needs, options)
    return DockerCommands(_build(image, release) if needs.python else "", shlex.join(run))


def _tag(needs: Needs) -> str:
    """Of NVIDIA's container."""
    if not needs.tensorrt:
        return NEWEST
    if len(needs.tensorrt) > 1:
        raise MissingDependencyError(
            f"the engines were built by TensorRT {' and '.join(needs.tensorrt)}, and a server has one; build them "
            "again by the same, or keep them in two repositories."
        )
    (version,) = needs.tensorrt
    asked = parse_version(version)
    later = [each.tag for each in RELEASES if each.tensorrt[0] == asked[0] and each.tensorrt >= asked]
    tag = container_for(version) or (later[-1] if later and needs.version_compatible else None)
    if tag is None:
        known = ".".join(map(str, RELEASES[0].tensorrt))
        raise MissingDependencyError(
            f"no container of tritonserver is known to have the engine's TensorRT, {version}; build the engine again "
            f"by TensorRT {known}, which {NEWEST} has, or serve model.onnx: metaformer-export triton DIR --repository "
            "R --backend onnxruntime."
        )
    return tag


def _gpus(needs: Needs) -> list[str]:
    """Docker refuses to start with GPUs where there are none."""
    wanted = needs.gpu or (needs.gpu_if_any and shutil.which("nvidia-smi") is not None)
    return ["--gpus", "all"] if wanted else []


def _build(image: str, release: str) -> str:
    """From the checkout that this package runs in; an installed one has no Dockerfile, and the command runs in one."""
    root = Path(__file__).resolve().parents[2]
    context = str(root) if (root / "Dockerfile").is_file() else "."
    return shlex.join(
        ["docker", "build", "--target", "serve", "--build-arg", f"RELEASE={release}", "-t", image, context]
    )

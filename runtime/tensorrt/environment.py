# SPDX-License-Identifier: Apache-2.0
"""Which TensorRT and which GPU there are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...errors import MissingDependencyError

OLDEST = (10, 8)
"""The first TensorRT whose strongly typed networks and quick-deploy plugins this code is written for."""
AHEAD_OF_TIME = (10, 9)
"""The first whose plugins carry compiled kernels in the engine."""
OLDEST_POLYGRAPHY = (0, 49, 18)
"""The first whose CreateConfig takes a level of tiling."""
_NUMBERS = re.compile(r"\d+")
_HOW = (
    'pip install "metaformer-export[tensorrt]" on a machine with an NVIDIA GPU, or run the Docker image there: '
    "docker run --gpus all metaformer-export:latest"
)


@dataclass(frozen=True)
class Environment:
    """TensorRT and the GPU that engines are built for and run on.

    Attributes:
        version: of TensorRT, as numbers: (11, 4, 0, 106).
        gpu: its name.
        architecture: its compute capability, times ten: 90.
    """

    version: tuple[int, ...]
    gpu: str
    architecture: int

    @property
    def version_text(self) -> str:
        """As TensorRT writes it."""
        return ".".join(map(str, self.version))


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of a version, without what follows them: "10.14.1.48.post1" is (10, 14, 1, 48)."""
    return tuple(int(number) for number in _NUMBERS.findall(text.partition(".post")[0])[:4])


def installed_version() -> tuple[int, ...]:
    """TensorRT's version; MissingDependencyError if it, or Polygraphy, is not installed or is too old."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise MissingDependencyError(f"TensorRT is not installed; {_HOW}.") from error
    version = parse_version(trt.__version__)
    if version < OLDEST:
        raise MissingDependencyError(f"TensorRT {trt.__version__} is too old, this needs 10.8 or later; {_HOW}.")
    try:
        import polygraphy
    except ImportError as error:
        raise MissingDependencyError(f"Polygraphy is not installed, which builds the engine; {_HOW}.") from error
    if parse_version(polygraphy.__version__) < OLDEST_POLYGRAPHY:
        needed = ".".join(map(str, OLDEST_POLYGRAPHY))
        raise MissingDependencyError(f"Polygraphy {polygraphy.__version__} is too old, this needs {needed}; {_HOW}.")
    return version


@cache
def environment() -> Environment:
    """What engines are built with and for.

    Raises:
        MissingDependencyError: TensorRT, Polygraphy, a GPU, or a PyTorch that can use it, is not there.
    """
    version = installed_version()
    import torch

    if not torch.cuda.is_available():
        built = "no GPU is visible" if torch.version.cuda else "this PyTorch is built without CUDA"
        raise MissingDependencyError(f"TensorRT {'.'.join(map(str, version))} is installed, but {built}; {_HOW}.")
    major, minor = torch.cuda.get_device_capability()
    return Environment(version, torch.cuda.get_device_name(), 10 * major + minor)


def available() -> bool:
    """Whether engines can be built and run here."""
    try:
        environment()
    except MissingDependencyError:
        return False
    return True


def is_at_least(version: tuple[int, ...], first: tuple[int, ...]) -> bool:
    """Whether a version has what came with `first`."""
    return version[: len(first)] >= first


def named(kind: Any, name: str) -> Any:
    """A member of one of TensorRT's enumerations by its name; MissingDependencyError if this version has none."""
    try:
        return getattr(kind, name)
    except AttributeError as error:
        raise MissingDependencyError(f"this TensorRT has no {kind.__name__}.{name}; a newer one has.") from error

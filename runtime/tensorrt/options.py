# SPDX-License-Identifier: Apache-2.0
"""What may be asked of the builder of an engine; defaults are TensorRT's unless a comment says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ...errors import InputError

Tiling = Literal["none", "fast", "moderate", "full"]
Hardware = Literal["none", "ampere_plus", "same_compute_capability"]
TILINGS: tuple[Tiling, ...] = get_args(Tiling)
HARDWARE: tuple[Hardware, ...] = get_args(Hardware)
MAX_OPTIMIZATION_LEVEL = 5
DEFAULT_OPTIMIZATION_LEVEL = 3


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        workspace_mib: memory for tactics in MiB; None is all of the GPU's.
        optimization_level: 0 builds fastest, 5 searches longest.
        timing_cache: file of measured tactics; None is one for each GPU and version in the user's cache folder.
        max_tactics: tactics timed for a layer; None leaves it to TensorRT.
        tiling: how long to search for tilings that keep values in the L2 cache.
        version_compatible: the engine loads in later versions of TensorRT, too.
        hardware_compatible: the engine runs on other GPUs, too.
        strip_plan: leave weights out of the engine; they are put back at load (refit) from the ONNX file.
        refit: weights may be replaced in the built engine.
        weight_streaming: weights may stay in host memory.
        tf32: float32 layers may multiply in TF32, 10 bits of mantissa. On, as in TensorRT itself.
        cuda_graph: sessions record a run at each batch size and replay it.

    Raises:
        InputError: a value outside its range.
    """

    workspace_mib: int | None = None
    optimization_level: int = DEFAULT_OPTIMIZATION_LEVEL
    timing_cache: str | Path | None = None
    max_tactics: int | None = None
    tiling: Tiling = "none"
    version_compatible: bool = False
    hardware_compatible: Hardware = "none"
    strip_plan: bool = False
    refit: bool = False
    weight_streaming: bool = False
    tf32: bool = True
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= MAX_OPTIMIZATION_LEVEL:
            raise InputError(
                f"--optimization-level takes 0 to {MAX_OPTIMIZATION_LEVEL}; got {self.optimization_level}."
            )
        for name, number in (("--workspace", self.workspace_mib), ("--max-tactics", self.max_tactics)):
            if number is not None and number < 1:
                raise InputError(f"{name} must be at least 1; got {number}.")
        for option, value, known in (
            ("--tiling", self.tiling, TILINGS),
            ("--hardware-compatible", self.hardware_compatible, HARDWARE),
        ):
            if value not in known:
                raise InputError(f"{option} {value!r} is not known; use {', '.join(known[:-1])} or {known[-1]}.")

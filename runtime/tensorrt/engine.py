# SPDX-License-Identifier: Apache-2.0
"""An engine as the stages hand it over, and as the manifest tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .options import EngineOptions

LOW = ("fp16", "bf16", "int8")


@dataclass(frozen=True)
class FallenBack:
    """A layer of an engine that computes in float32 what the file has in a lower precision."""

    layer: str
    modules: tuple[str, ...]
    wanted: str


@dataclass(frozen=True)
class EngineReport:
    """What an engine's layers are, against what its file asks for.

    Attributes:
        wanted, got: nodes with arithmetic by precision, for each group of modules; those that TensorRT folded into
            others, or names nowhere, are in `wanted` alone.
        reformats, casts: layers that only change a layout or a type.
        plugins: layers that a plugin computes, by operator.
    """

    layers: int
    wanted: Mapping[str, Mapping[str, int]]
    got: Mapping[str, Mapping[str, int]]
    fallen_back: tuple[FallenBack, ...] = ()
    reformats: int = 0
    casts: int = 0
    plugins: Mapping[str, int] = field(default_factory=dict)

    def counted(self, precision: str) -> int:
        """Nodes that the engine computes in a precision."""
        return sum(counts.get(precision, 0) for counts in self.got.values())

    @property
    def silent_float32(self) -> bool:
        """Whether nothing is computed in the low precision that the file has."""
        low = {precision for counts in self.wanted.values() for precision in counts} & set(LOW)
        return bool(low) and not any(self.counted(precision) for precision in low)


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        source: the .onnx file that it was built from.
        version: of TensorRT, as it writes it.
        architecture: compute capability of the GPU, times ten.
        plugins: mixer ops that run as plugins.
        batch: smallest, usual and largest.
        warnings: what the builder said.
        findings: known issues that the file meets, and what to do about each.
        compared: milliseconds on the GPU at the usual batch, by source, where an engine of each was timed.
        gpu_milliseconds: of this engine at its smallest and usual batch, by CUDA events, without copies.
    """

    path: Path
    source: str
    version: str
    gpu: str
    architecture: int
    plugins: tuple[str, ...]
    batch: tuple[int, int, int]
    options: EngineOptions
    seconds: float
    report: EngineReport
    warnings: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    compared: Mapping[str, float] = field(default_factory=dict)
    gpu_milliseconds: Mapping[int, float] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the engine is not what was asked for."""
        if not self.report.silent_float32:
            return ()
        first = next(iter(self.report.fallen_back), None)
        where = f", first {', '.join(first.modules)}" if first else ""
        return (f"the engine computes in float32 what {self.source} has in a lower precision{where}",)

    def told(self) -> dict[str, Any]:
        """The "tensorrt" entry of the manifest."""
        return {**asdict(self), "path": self.path.name}

# SPDX-License-Identifier: Apache-2.0
"""An engine as the stages hand it over, and as the manifest tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .options import EngineOptions

LOW = ("fp16", "bf16", "int8")
_SHOWN = 3
"""Modules that a failure names."""


@dataclass(frozen=True)
class FallenBack:
    """A layer of an engine that computes in a wider type what the file has in a lower precision.

    Attributes:
        wanted, got: the file's precision and the engine's.
    """

    layer: str
    modules: tuple[str, ...]
    wanted: str
    got: str = "fp32"


@dataclass(frozen=True)
class EngineReport:
    """What an engine's layers are, against what its file asks for.

    Attributes:
        wanted, got: nodes with arithmetic by precision, for each group of modules; those that TensorRT folded into
            others, names nowhere, or does not tell the type of, are in `wanted` alone.
        reformats, casts: layers that only change a layout or a type.
        plugins: layers that a plugin computes, by operator.
        computed: the nodes of `got` by the precision that they were asked in, then by that which they compute in.
        unknown: nodes that layers name without telling their type.
        unexpected_casts: layers that only change a type and stand for none of the file's own conversions.
        unread: why nothing of the engine's layers could be read; "" where it could.
    """

    layers: int
    wanted: Mapping[str, Mapping[str, int]]
    got: Mapping[str, Mapping[str, int]]
    fallen_back: tuple[FallenBack, ...] = ()
    reformats: int = 0
    casts: int = 0
    plugins: Mapping[str, int] = field(default_factory=dict)
    computed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unknown: int = 0
    unexpected_casts: int = 0
    unread: str = ""

    def counted(self, precision: str) -> int:
        """Nodes that the engine computes in a precision."""
        return _total(self.got, precision)

    @property
    def asked_low(self) -> frozenset[str]:
        """Precisions below float32 that the file has nodes in."""
        return frozenset(precision for counts in self.wanted.values() for precision in counts) & frozenset(LOW)

    @property
    def silent_float32(self) -> bool:
        """Whether all that the file has in a low precision is in float32, as far as is known, and enough is known."""
        fallen, known = self.float32_of_low
        return self.knows_enough_of(*LOW) and fallen == known

    @property
    def float32_of_low(self) -> tuple[int, int]:
        """Nodes that were asked in a low precision and compute in float32, and all such nodes whose type is known."""
        low = [self.computed.get(precision, {}) for precision in LOW]
        return sum(counts.get("fp32", 0) for counts in low), sum(sum(counts.values()) for counts in low)

    @property
    def mostly_float32(self) -> bool:
        """Whether more than half of what the file has in a low precision is in float32, where enough is known."""
        fallen, known = self.float32_of_low
        return self.knows_enough_of(*LOW) and 2 * fallen > known

    @property
    def nothing_in_int8(self) -> bool:
        """Whether the file has int8, none of its nodes is known to compute in it, and enough of them are known."""
        return self.knows_enough_of("int8") and "int8" not in self.computed["int8"]

    def knows_enough_of(self, *asked: str) -> bool:
        """Whether the type of at least half of the nodes that were asked in such precisions is known, and of one."""
        known = sum(sum(self.computed.get(precision, {}).values()) for precision in asked)
        return known > 0 and 2 * known >= sum(_total(self.wanted, precision) for precision in asked)

    @property
    def tells_no_types(self) -> bool:
        """Whether nothing is known of what the engine computes in that the file has in a low precision."""
        return bool(self.asked_low) and not self.float32_of_low[1]

    @property
    def tells_few_types(self) -> bool:
        """Whether something is known of that, and too little to judge the engine by."""
        return self.float32_of_low[1] > 0 and not self.knows_enough_of(*LOW)

    @property
    def conversions(self) -> str:
        """Layers that cost time and that the file does not ask for, in words; "" where there are none."""
        counts = ((self.unexpected_casts, "unexpected cast"), (self.reformats, "reformat"))
        return ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know beside what fell back."""
        remarks = []
        if self.unread or self.tells_no_types:
            why = f" ({self.unread.rstrip('.')})" if self.unread else ""
            remarks.append(
                f"TensorRT's inspector does not say in which types the engine computes{why}; only its time and its "
                "parity tell whether it is in the precision of the file."
            )
        elif self.tells_few_types:
            asked = sum(_total(self.wanted, precision) for precision in LOW)
            remarks.append(
                f"TensorRT's inspector says of few nodes in which types they compute ({self.float32_of_low[1]} of the "
                f"{asked} that the file has in a lower precision); only the engine's time and its parity tell whether "
                "it is in the precision of the file."
            )
        if self.unexpected_casts:
            layers = "1 layer" if self.unexpected_casts == 1 else f"{self.unexpected_casts} layers"
            remarks.append(f"the engine casts in {layers} where its file does not.")
        return tuple(remarks)


def _total(groups: Mapping[str, Mapping[str, int]], precision: str) -> int:
    return sum(counts.get(precision, 0) for counts in groups.values())


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
        report = self.report
        if report.silent_float32:
            return (f"the engine computes in float32 what {self.source} has in a lower precision{self._first('fp32')}",)
        failures = []
        if report.mostly_float32:
            fallen, known = report.float32_of_low
            failures.append(
                f"the engine computes in float32 {fallen} of {known} nodes that {self.source} has in a lower precision"
                f"{self._first('fp32')}"
            )
        if report.nothing_in_int8:
            failures.append(
                f"the engine computes nothing in int8, which {self.source} has in "
                f"{_total(report.wanted, 'int8')} nodes{self._first('fp32', 'fp16', 'bf16', wanted=('int8',))}"
            )
        return tuple(failures)

    def _first(self, *got: str, wanted: tuple[str, ...] = LOW) -> str:
        """The first modules that fell back in such a way."""
        fallen = [each for each in self.report.fallen_back if each.got in got and each.wanted in wanted]
        modules = list(dict.fromkeys(module for each in fallen for module in each.modules))
        return f", first {', '.join(modules[:_SHOWN])}" if modules else ""

    def told(self) -> dict[str, Any]:
        """The "tensorrt" entry of the manifest."""
        return {**asdict(self), "path": self.path.name}

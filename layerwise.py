# SPDX-License-Identifier: Apache-2.0
"""Which PyTorch module of a delivered file is the first that departs from float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from .artifacts import Arithmetic, Converted, Lowered
from .calibration.images import ImageSet
from .calibration.quantize import observed, quantize
from .checking import Delivered, engine_opener, load_eager, load_graph, readable
from .export.graph import module_of
from .export.precision import computes_in, convert
from .export.serialize import taken_apart
from .progress import Progress
from .quantizing import ON_CPU
from .relowering import common_nodes, lowered_again
from .runtime.clustering import EagerDecisions
from .runtime.departure import (
    ROUNDING,
    Deviation,
    Show,
    by_module,
    deviations,
    error,
    first_departed,
    measured,
)
from .runtime.handovers import handovers, showing
from .runtime.observe import largest_magnitudes, rounded
from .runtime.onnxruntime import open_session
from .runtime.parity import THRESHOLDS
from .runtime.ranges import extremes
from .runtime.saturation import weight_bits
from .runtime.session import Session
from .runtime.threads import available_threads

_IMAGES = 2
_MULTIPLIES = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Layers:
    """Modules of a delivered file against float32.

    Attributes:
        modules: of each the value that departs most, in the graph's order.
        departed: the first value that departs; None where none does.
        outputs: error of each output of the model.
        limit: that the outputs may have in this precision.
        lowering: error of the float32 graph's outputs against eager PyTorch, the largest.
    """

    arithmetic: Arithmetic
    images: tuple[str, ...]
    modules: tuple[Deviation, ...]
    departed: Deviation | None
    outputs: Mapping[str, float]
    limit: float
    lowering: float

    @property
    def lowered_right(self) -> bool:
        """Whether the float32 graph computes what eager computes."""
        return self.lowering <= THRESHOLDS["fp32"].rms_rel

    @property
    def passed(self) -> bool:
        """Whether nothing departs and the outputs are within their limit."""
        return self.departed is None and self.within_limit and self.lowered_right

    @property
    def within_limit(self) -> bool:
        """Whether the outputs are."""
        return all(each <= self.limit for each in self.outputs.values())

    def largest_increases(self, count: int) -> tuple[Deviation, ...]:
        """The modules at which the error increases most, and the one that departs, in the graph's order."""
        rows = [
            self.departed if self.departed is not None and self.departed.module == each.module else each
            for each in self.modules
        ]
        largest = sorted(rows, key=lambda each: each.increase, reverse=True)[:count]
        return tuple(each for each in rows if each in largest or each == self.departed)

    def verdict(self) -> tuple[str, ...]:
        """What is found, in words."""
        title, lines = self.arithmetic.upper(), []
        at_end = f"{_error(max(self.outputs.values()))} at the outputs"
        if self.departed is not None:
            explained = f"{title} explains {_percent(self.departed.explained)}"
            lines.append(f"{self.departed.module} departs first: {_error(self.departed.error)}, where {explained}")
            lines.append(at_end)
            if self.arithmetic == "int8":
                lines.append("where nothing is damaged, a range does not fit these images; --images takes others")
        else:
            lines.append(f"no module departs: {at_end}")
            if not self.within_limit:
                lines.append(
                    f"the outputs miss their limit of {_percent(self.limit)}: {title} costs this model too much, most "
                    "where the error increases"
                )
        if not self.lowered_right:
            lines.append(
                f"the float32 graph itself is {_percent(self.lowering)} from eager PyTorch: a defect of this version's "
                "lowering, whatever the file is"
            )
        return tuple(lines)


def compare_layers(delivered: Delivered, checkpoint: Path | None, images: Path | None, progress: Progress) -> Layers:
    """Run the file and its float32 form on a few images, and compare what their modules hand over.

    Args:
        checkpoint: the weights that were exported; None for random ones.
        images: a folder; None for the photographs that come with the package.

    Raises:
        InputError: the file is damaged or not of the graph that this version makes, or input cannot be used.
        ParityError: a value of the file has another shape than in float32.
    """
    module, shown = load_eager(delivered, checkpoint, images, progress)
    graph = load_graph(delivered.source)
    lowered = lowered_again(module, delivered, graph.graph, progress)
    within = common_nodes(lowered, graph.graph, delivered, progress)
    with progress.stage("layers") as done, readable(delivered.source):
        found = _compared(module, shown, lowered, graph, within, delivered, progress)
        done(f"{len(found.modules)} modules on {len(found.images)} images")
    return found


def _compared(
    module: nn.Module,
    shown: ImageSet,
    lowered: Lowered,
    graph: ir.Model,
    within: Collection[str],
    delivered: Delivered,
    progress: Progress,
) -> Layers:
    count, arithmetic, names = _batch(delivered), delivered.arithmetic, delivered.spec.outputs
    batch = shown.take(0, count)
    expected, orders = EagerDecisions(module)(batch)
    reference = _in_onnxruntime(Converted(delivered.spec, lowered.model, lowered.form, "fp32"), fuse=False)
    session, modules = reference(names)
    outputs = session(batch, {each: orders[each] for each in modules})
    del session
    with progress.step("a graph of known rounding"):
        known = _in_onnxruntime(_known_rounding(lowered, graph.graph, delivered, batch), literal=True)
    found = handovers(lowered.model.graph, within)
    with progress.count("compare", len(found), unit="values") as told:
        errors = measured(reference, known, _as_delivered(delivered, graph), found, batch, orders, told)
    judged = deviations(found, *errors, ROUNDING[arithmetic])
    return Layers(
        arithmetic=arithmetic,
        images=tuple(shown.names[index % len(shown.names)] for index in range(count)),
        modules=by_module(judged),
        departed=first_departed(judged),
        outputs={each.value: each.error for each in judged if each.value in names},
        limit=THRESHOLDS[delivered.arithmetic].rms_rel,
        lowering=max(error(*each) for each in zip(names, expected, outputs, strict=True)),
    )


def _batch(delivered: Delivered) -> int:
    """Images at once, as many as an engine takes."""
    if not delivered.is_engine:
        return _IMAGES
    smallest, _, largest = delivered.engine.batch
    return min(max(_IMAGES, smallest), largest)


def _known_rounding(lowered: Lowered, graph: ir.Graph, delivered: Delivered, batch: NDArray[np.float32]) -> Converted:
    """What errors are held against: the graph in bfloat16, or quantised with the ranges of these images."""
    if delivered.precision != "int8":
        return convert(lowered, "bf16")
    threads = available_threads()
    seen = extremes(lowered.model, observed(lowered), lambda: (batch,), threads=threads)
    ranges = {name: (each.low, each.high) for name, each in seen.items()}
    spared = dict.fromkeys(_not_quantised(graph), "as in the file")
    if delivered.literal:
        peaks = largest_magnitudes(lowered, batch, threads)
        return quantize(lowered, ranges, "tensorrt", keep=spared, max_abs=peaks)
    target = ON_CPU[delivered.manifest["target"]]
    return quantize(lowered, ranges, target, keep=spared, weight_bits=weight_bits())


def _not_quantised(graph: ir.Graph) -> list[str]:
    """Modules of a quantised graph that multiply, and nowhere in eight bits."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for node in graph:
        if node.op_type in _MULTIPLIES:
            kinds[module_of(node) or "model"].add(computes_in(node))
    return [module for module, found in kinds.items() if "int8" not in found]


def _in_onnxruntime(converted: Converted, *, fuse: bool = True, literal: bool = False) -> Show:
    """Every tensor rounded to its type, which ONNX Runtime's CPU would not do in 16 bits."""

    def show(names: Sequence[str]) -> tuple[Session, tuple[str, ...]]:
        model, modules = showing(converted.model, names)
        file = taken_apart(rounded(replace(converted, model=model)))
        return open_session(file, threads=available_threads(), fuse=fuse, literal=literal), modules

    return show


def _as_delivered(delivered: Delivered, graph: ir.Model) -> Show:
    """The file's own graph in the runtime that it is for."""
    if not delivered.is_engine:
        converted = Converted(delivered.spec, graph, "", delivered.precision)
        return _in_onnxruntime(converted, literal=delivered.literal)
    build = engine_opener(delivered)

    def show(names: Sequence[str]) -> tuple[Session, tuple[str, ...]]:
        model, modules = showing(graph, names)
        return build(taken_apart(model), threads=available_threads()), modules

    return show


def _error(share: float) -> str:
    return f"rms error {_percent(share)} of the spread" if isfinite(share) else "values that are not finite"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"

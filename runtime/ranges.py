# SPDX-License-Identifier: Apache-2.0
"""What values the tensors of a graph take over many images, in bounded memory: extremes, then histograms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibration.thresholds import BINS, Histogram
from ..errors import ImageError
from ..export.serialize import taken_apart
from .onnxruntime import Session, open_session

Batches = Callable[[], Iterable[NDArray[np.float32]]]
"""Begins anew with the first batch (B, C, H, W) each time it is called."""
_BUDGET = 512 * 2**20
"""Bytes of tensors that are looked at in one run."""
_COUNTED = 2**16
"""Values of one tensor and image that a histogram counts at most, evenly spread; extremes are of all."""


@dataclass(frozen=True)
class Extremes:
    """The least and the greatest value of a tensor."""

    low: float
    high: float


def extremes(
    model: ir.Model, names: Sequence[str], batches: Batches, *, threads: int, told: Callable[[int], object] = int
) -> dict[str, Extremes]:
    """Of float32 tensors of a graph, by name, over all batches.

    Args:
        told: called with the number of images after each batch.

    Raises:
        ImageError: a tensor has a value that is not finite: the model does not compute with these images.
    """
    session = open_session(taken_apart(_reduced(model.clone(), names)), threads=threads, fuse=False)
    lows, highs = [], []
    for batch in batches():
        low, high = session(batch)
        lows.append(low)
        highs.append(high)
        told(len(batch))
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    broken = [name for name, value in zip(names, low + high, strict=True) if not np.isfinite(value)]
    if broken:
        raise ImageError(
            f"{broken[0]} is not finite for these images; calibration needs images that the model can take."
        )
    return {name: Extremes(float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def histograms(
    model: ir.Model,
    seen: Mapping[str, Extremes],
    batches: Batches,
    *,
    threads: int,
    told: Callable[[int], object] = int,
    budget: int = _BUDGET,
) -> dict[str, Histogram]:
    """Of the tensors whose extremes are known, over the same batches, which are cut into runs within the budget."""
    laid_open = model.clone()
    values = _values(laid_open.graph)
    laid_open.graph.outputs[:] = [values[name] for name in seen if name not in _inputs(laid_open.graph)]
    at_once = max(1, budget // max(1, sum(bytes_of(values[name]) for name in seen)))
    outputs = [str(value.name) for value in laid_open.graph.outputs]
    session = open_session(taken_apart(laid_open), threads=threads, fuse=False)
    counts = {name: np.zeros(BINS, np.int64) for name in seen}
    for batch in batches():
        for start in range(0, len(batch), at_once):
            _count(counts, seen, session, batch[start : start + at_once], outputs)
        told(len(batch))
    return {name: Histogram(counts[name], each.low, each.high) for name, each in seen.items()}


def _count(
    counts: Mapping[str, NDArray[np.int64]],
    seen: Mapping[str, Extremes],
    session: Session,
    images: NDArray[np.float32],
    outputs: Sequence[str],
) -> None:
    tensors = dict(zip(outputs, session(images), strict=True))
    for name, each in seen.items():
        counts[name] += binned(_sampled(tensors.pop(name, images), len(images) * _COUNTED), each)


def _sampled(tensor: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Every so manieth value of a tensor, with a step that falls on all channels and places in turn; 1-D."""
    step = -(-tensor.size // most)
    while math.gcd(step, tensor.size) > 1:
        step += 1
    return tensor.reshape(-1)[::step]


def binned(tensor: NDArray[np.float32], seen: Extremes) -> NDArray[np.int64]:
    """How many values lie in each of BINS bins of one width between the extremes; those outside count at the ends."""
    width = (seen.high - seen.low) / BINS
    if width == 0:
        return np.bincount([0], [tensor.size], BINS).astype(np.int64)
    place = ((tensor.reshape(-1) - np.float32(seen.low)) * np.float32(1 / width)).astype(np.int32)
    return np.bincount(place.clip(0, BINS - 1), minlength=BINS)


def _reduced(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A model whose outputs are the least and the greatest values of tensors, (len(names),) each."""
    graph = model.graph
    values = _values(graph)
    one = ir.val("ranges.one", const_value=ir.tensor(np.array([1], np.int64), name="ranges.one"))
    graph.register_initializer(one)
    first = next(iter(graph))
    ends = []
    for kind in ("ReduceMin", "ReduceMax"):
        lifted = []
        for name in names:
            reduced = ir.node(kind, [values[name]], {"keepdims": 0})
            reshaped = ir.node("Reshape", [reduced.outputs[0], one])
            maker = values[name].producer()
            if maker is None:
                graph.insert_before(first, (reduced, reshaped))
            else:
                graph.insert_after(maker, (reduced, reshaped))  # at once, so that the value need not be kept
            lifted.append(reshaped.outputs[0])
        joined = ir.node("Concat", lifted, {"axis": 0})
        graph.append(joined)
        joined.outputs[0].name = f"ranges.{kind}"
        joined.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        ends.append(joined.outputs[0])
    graph.outputs[:] = ends
    return model


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return {str(value.name): value for value in (*graph.inputs, *made)}


def _inputs(graph: ir.Graph) -> set[str]:
    return {str(value.name) for value in graph.inputs}


def bytes_of(value: ir.Value) -> int:
    """Of one image: a symbolic dimension is the batch, or so many times the batch, as for windows."""
    sides = [side if isinstance(side, int) else _times(str(side)) for side in value.shape or ()]
    return 4 * int(np.prod(sides))


def _times(side: str) -> int:
    found = re.match(r"(\d+)\*", side)
    return int(found[1]) if found else 1

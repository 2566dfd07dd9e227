# SPDX-License-Identifier: Apache-2.0
"""One-sided inputs of classifiers, shifted so that signed bytes around zero are all spent on them.

TensorRT takes no zero points: of what lies between 0 and 6, -127 to -1 would be spent on nothing, which is a whole bit.
A linear layer computes the same of x - c once W c is in its bias, and c is a whole number of steps, so that
zero, the most frequent value there, stays exact: the arithmetic of a zero point, by a subtraction that is one more
operation on values that an elementwise kernel has at hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..export.graph import Builder, attribute, constant, producer
from .placement import SMALLEST_RANGE

_LEAST_GAIN = 1.5
"""A range must become that much smaller; one that is centred already has nothing to gain."""
_LARGEST = 127
_CENTRED = ".centred"


@dataclass(frozen=True)
class Shift:
    """A tensor from which a number of steps is taken, and the layers that read what is left.

    Attributes:
        subtraction: name of the node.
        steps: of the scale that the difference is quantised with.
        layers: names of the nodes.
    """

    subtraction: str
    steps: int
    layers: tuple[str, ...]


def centred(
    model: ir.Model, nodes: Sequence[ir.Node], ranges: Mapping[str, tuple[float, float]]
) -> tuple[ir.Model, dict[str, tuple[float, float]], tuple[Shift, ...]]:
    """A copy of a float32 graph in which one-sided inputs of these layers are shifted, the ranges with those of the
    differences, and what `give_back` must add to the layers once they are quantised.
    """
    model, found = model.clone(), dict(ranges)
    wanted = {node.name for node in nodes}
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        value = node.inputs[0] if node.name in wanted else None
        if value is not None and constant(value) is None:
            readers[value].append(node)
    shifts = []
    for value, layers in readers.items():
        low, high = ranges[str(value.name)]
        low, high = min(low, 0.0), max(high, 0.0)
        half = (high - low) / 2
        one_sided = 2 * half >= SMALLEST_RANGE and max(-low, high) >= _LEAST_GAIN * half
        if not one_sided or not all(map(_may_be_shifted, layers)):
            continue
        steps = round((high + low) / 2 / (half / _LARGEST))
        name = f"{value.name}{_CENTRED}"
        build = Builder(layers[0])
        by = build.constant(f"{name}.by", np.array(steps * half / _LARGEST, np.float32))
        difference = build.node("Sub", [value, by], like=value)
        difference.name, difference.outputs[0].name = name, name
        for layer in layers:
            layer.replace_input_with(0, difference.outputs[0])
            bias = _constant(layer.inputs[2])
            layer.replace_input_with(2, build.constant(f"{layer.name}/bias", bias))  # of its own
        found[name] = (-half, half)
        shifts.append(Shift(name, steps, tuple(str(layer.name) for layer in layers)))
    return model, found, tuple(shifts)


def give_back(model: ir.Model, shifts: Sequence[Shift]) -> None:
    """Add to every shifted layer, in place, what its quantised weights make of the shift, in the steps as they are."""
    nodes = {node.name: node for node in model.graph}
    for shift in shifts:
        subtraction = nodes[shift.subtraction]
        for name in shift.layers:
            layer = nodes[name]
            by = shift.steps * _step(layer.inputs[0])
            _replace(subtraction, 1, np.array(by))
            _replace(layer, 2, _constant(layer.inputs[2]) + by * _sums(layer))


def _may_be_shifted(layer: ir.Node) -> bool:
    """Whether it multiplies the tensor by constants alone and has a bias, as a classifier does."""
    return (
        layer.op_type == "Gemm"
        and len(layer.inputs) == 3
        and not attribute(layer, "transA", 0)
        and attribute(layer, "beta", 1.0) == 1.0
    )


def _sums(layer: ir.Node) -> NDArray[np.float64]:
    """Of the quantised weights of each output."""
    pair = producer(layer.inputs[1], "DequantizeLinear")
    assert pair is not None
    weight, scale = _constant(pair.inputs[0]).astype(np.float64), _constant(pair.inputs[1]).astype(np.float64)
    rows = weight.sum(1 if attribute(layer, "transB", 0) else 0)
    sums: NDArray[np.float64] = rows * scale * float(attribute(layer, "alpha", 1.0))
    return sums


def _step(value: ir.Value | None) -> float:
    pair = producer(value, "DequantizeLinear")
    assert pair is not None
    return float(_constant(pair.inputs[1]))


def _constant(value: ir.Value | None) -> NDArray[Any]:
    found = constant(value)
    assert found is not None
    return np.asarray(found)


def _replace(node: ir.Node, index: int, number: NDArray[np.float64]) -> None:
    """Put another number in place of a constant, in its type."""
    value = node.inputs[index]
    assert value is not None
    array = number.astype(_constant(value).dtype)
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)

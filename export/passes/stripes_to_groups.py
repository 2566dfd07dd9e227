# SPDX-License-Identifier: Apache-2.0
"""A depthwise convolution inside stripes -> one over the map, with a group of its own for each stripe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder, attribute, constant, only_reader, permutation, producer, replace, size
from .base import Pass, no_match

Array = NDArray[Any]
_TO_IMAGES, _FROM_IMAGES = (0, 1, 3, 5, 2, 4), (0, 1, 4, 2, 5, 3)
"""Of (B, rows, height, columns, width, C), and back from (B, rows, columns, C, height, width)."""


@dataclass(frozen=True)
class StripesToGroups(Pass):
    """CSWin's LePE on stripes that cross the whole map.

    Every stripe as an image of its own takes a transposition of six axes, and another one back, number by number. A
    map whose channels come first, and whose axis across the stripes comes next, already is one image with a channel
    for each channel of each stripe. Without it BOAT-CSWin-T takes 1.21 times as long in ONNX Runtime; OpenVINO
    gains nothing.
    """

    def rewrite(self, model: ir.Model) -> int:
        return sum(_convert(node) for node in list(model.graph) if node.op_type == "Conv" and node.domain == "")


def _convert(conv: ir.Node) -> bool:
    weight, bias = (constant(each) for each in (*conv.inputs[1:], None)[:2])
    cut, whole = _cut(conv), _whole(conv)
    if cut is None or whole is None or weight is None or bias is None:
        return False
    x, windows = cut.inputs[0], cut.outputs[0]
    rows, height, columns, width, channels = (size(windows, axis) for axis in range(1, 6))
    if x is None or x.shape != whole.shape or not attribute(conv, "group", 1) == channels == len(weight):
        return False
    if rows > 1 and columns > 1:
        no_match("the windows are no stripes", conv)
        return False
    across = columns > 1
    pads = list(attribute(conv, "pads", [0, 0, 0, 0]))
    if across:
        weight, pads = weight.swapaxes(2, 3), [pads[1], pads[0], pads[3], pads[2]]
        rows, height, columns, width = columns, width, rows, height
    write = _Writer(Builder(conv), whole)
    if across:  # by itself: a runtime copies rows of channels here, and turns a matrix below; both at once take it long
        x = write.transposed(x, (columns * width, rows * height, channels), (0, 2, 1, 3))
    images = write.turned(x, (channels * rows, height, width), (rows * height * columns * width, channels))
    parameters = (np.repeat(each, rows, axis=0) for each in (weight, bias))
    constants = (write.build.constant(f"{conv.name}.groups", each) for each in parameters)
    settings = {"kernel_shape": list(weight.shape[2:]), "pads": pads, "group": channels * rows}
    local = write.node("Conv", [images, *constants], (channels * rows, height, width), settings)
    sides = (rows * height, columns * width, channels)
    result = write.turned(local, sides, (channels, rows * height * columns * width))
    if across:
        result = write.transposed(result, sides, (0, 2, 1, 3))
    replace(whole, result)
    return True


@dataclass(frozen=True)
class _Writer:
    """Writes nodes with the type and the batch of a value; shapes are those of one image."""

    build: Builder
    like: ir.Value

    def node(
        self, op_type: str, inputs: list[ir.Value], shape: tuple[int, ...], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        batch = None if self.like.shape is None else self.like.shape[0]
        return self.build.value(op_type, inputs, attributes=attributes, like=self.like, shape=(batch, *shape))

    def transposed(self, x: ir.Value, shape: tuple[int, ...], perm: tuple[int, ...]) -> ir.Value:
        """`x`, of that shape, with its axes in another order."""
        return self.node("Transpose", [x], tuple(shape[axis - 1] for axis in perm[1:]), {"perm": perm})

    def turned(self, x: ir.Value, shape: tuple[int, ...], matrix: tuple[int, int]) -> ir.Value:
        """`x`, read as that matrix, transposed, and that read as an array of the shape."""
        return self._reshaped(self.transposed(self._reshaped(x, matrix), matrix, (0, 2, 1)), shape)

    def _reshaped(self, x: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        return self.node("Reshape", [x, self.build.ints("shape", 0, *shape)], shape)


def _cut(conv: ir.Node) -> ir.Node | None:
    """The Reshape that cuts a map of known size, of which the convolution reads every window as an image."""
    merged = producer(conv.inputs[0], "Reshape")
    turned = None if merged is None else producer(merged.inputs[0], "Transpose")
    if turned is None or permutation(turned) != _TO_IMAGES:
        return None
    cut = producer(turned.inputs[0], "Reshape")
    shape = () if cut is None or cut.outputs[0].shape is None else cut.outputs[0].shape[1:]
    return cut if shape and all(isinstance(each, int) for each in shape) else None


def _whole(conv: ir.Node) -> ir.Value | None:
    """The map (B, H, W, C) that the convolution's results are put together to, if nothing else reads them."""
    value = conv.outputs[0]
    if any(number != 1 for key in ("strides", "dilations") for number in attribute(conv, key, [1])):
        return None
    for op_type in ("Reshape", "Transpose", "Reshape"):
        reader = only_reader(value)
        if reader is None or reader[0].op_type != op_type:
            return None
        if op_type == "Transpose" and permutation(reader[0]) != _FROM_IMAGES:
            return None
        value = reader[0].outputs[0]
    return value

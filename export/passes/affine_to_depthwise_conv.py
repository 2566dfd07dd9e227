# SPDX-License-Identifier: Apache-2.0
"""s * x + b in front of a convolution -> a depthwise 1x1 convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder, computed_and_constant, constant, only_reader, only_use, replace, size
from .base import Pass

Array = NDArray[Any]


@dataclass(frozen=True)
class AffineToDepthwiseConv(Pass):
    """The factor and offset that no weights could take (StarReLU before a padded convolution) become one.

    ONNX Runtime computes it in the blocked layout of its neighbours, and in one pass; for a product
    with a constant it would leave that layout and come back.
    """

    def rewrite(self, model: ir.Model) -> int:
        return sum(_convert(node) for node in list(model.graph) if node.op_type == "Add" and node.domain == "")


def _convert(add: ir.Node) -> bool:
    result = add.outputs[0]
    scaled, offset = computed_and_constant(add, "Add")
    if scaled is None or not only_use(scaled):
        return False
    x, factor = computed_and_constant(scaled.producer(), "Mul")
    if x is None or not _maps(x) or x.shape != result.shape or not _before_conv(result):
        return False
    channels = size(x, 1)
    build = Builder(add)
    numbers = [_per_channel(each, channels) for each in (factor, offset)]
    if numbers[0] is None or numbers[1] is None:
        return False
    weight = build.constant(f"{add.name}.factor", numbers[0].reshape(-1, 1, 1, 1))
    bias = build.constant(f"{add.name}.offset", numbers[1])
    attributes = {"kernel_shape": (1, 1), "group": channels}
    replace(result, build.value("Conv", [x, weight, bias], attributes=attributes, like=result))
    return True


def _maps(x: ir.Value) -> bool:
    return x.shape is not None and len(x.shape) == 4 and isinstance(x.shape[1], int)


def _before_conv(value: ir.Value) -> bool:
    reader = only_reader(value)
    return reader is not None and reader[0].op_type == "Conv"


def _per_channel(value: ir.Value | None, channels: int) -> Array | None:
    """(channels,), or None where the numbers differ along another axis."""
    numbers = np.asarray(constant(value))
    if numbers.size == 1:
        return np.repeat(numbers.reshape(-1), channels)
    return numbers.reshape(-1) if numbers.shape[-3:] == (channels, 1, 1) and numbers.size == channels else None

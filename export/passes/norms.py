# SPDX-License-Identifier: Apache-2.0
"""LayerNorms in a graph, however they are written, and how they are written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder, attribute, constant, float_type, permutation, producer, replace
from .fuse_channel_layer_norm import match_channel_norm

Array = NDArray[Any]


@dataclass(frozen=True)
class Norm:
    """weight * (x - mean) / sqrt(var + epsilon) + bias over one axis.

    Attributes:
        last: makes the result.
        readers: the nodes of the norm that read x.
        axis: of the channels, from the front.
        weight: (channels,); bias likewise or None.
    """

    last: ir.Node
    readers: tuple[ir.Node, ...]
    axis: int
    weight: Array
    bias: Array | None
    epsilon: float

    @property
    def x(self) -> ir.Value:
        """What the norm reads at the moment."""
        value = self.readers[0].inputs[0]
        if value is None:
            raise ValueError(f"{self.last.name} reads nothing")
        return value


def find_norm(node: ir.Node) -> Norm | None:
    """The norm whose last node this is: a LayerNormalization over the last axis, or one over the channels of a map."""
    x = node.inputs[0] if node.inputs else None
    if node.domain != "" or x is None or x.shape is None:
        return None
    if node.op_type == "LayerNormalization":
        last = len(x.shape) - 1
        weight, bias = (constant(each) for each in (*node.inputs[1:], None)[:2])
        if attribute(node, "axis", -1) not in (-1, last) or weight is None or len(node.outputs) > 1:
            return None
        return Norm(node, (node,), last, weight, bias, attribute(node, "epsilon", 1e-5))
    match = match_channel_norm(node) if node.op_type == "Add" else None
    if match is None:
        return None
    weight, bias = (np.asarray(constant(each)).reshape(-1) for each in (match.weight, match.bias))
    return Norm(node, match.readers, 1, weight, bias, match.epsilon)


def write_out(norm: Norm, *, centred: bool, turned: bool) -> None:
    """Replace a norm by primitives, its factor and offset last, so that the next layer can take them.

    Args:
        centred: x has no mean over the channels.
        turned: where x is transposed for the norm, only the result still is.
    """
    build = Builder(norm.last)
    x, axis, order = _before_transpose(norm) if turned else (norm.x, norm.axis, None)
    if not centred:
        x = subtract_mean(build, x, axis)
    result = build.value("Div", [x, _root_mean_square(build, x, axis, norm)], like=x)
    if order is not None:
        result = build.value(
            "Transpose", [result], attributes={"perm": order}, like=x, shape=norm.last.outputs[0].shape
        )
    ones = (1,) * (len(result.shape or ()) - norm.axis - 1)
    if not (norm.weight == 1).all():
        factor = build.constant("norm.weight", norm.weight.reshape(-1, *ones))
        result = build.value("Mul", [result, factor], like=result)
    if norm.bias is not None and norm.bias.any():
        result = build.value("Add", [result, build.constant("norm.bias", norm.bias.reshape(-1, *ones))], like=result)
    replace(norm.last.outputs[0], result)


def subtract_mean(build: Builder, x: ir.Value, axis: int) -> ir.Value:
    """x less its mean over one axis."""
    mean = build.value("ReduceMean", [x, build.ints("axes", axis)], like=x, shape=_reduced(x, axis))
    return build.value("Sub", [x, mean], like=x)


def _before_transpose(norm: Norm) -> tuple[ir.Value, int, tuple[int, ...] | None]:
    """What the norm reads, in the layout in which it was made: the value, its axis, and how it was transposed."""
    turned = producer(norm.x, "Transpose")
    if turned is None or turned.inputs[0] is None:
        return norm.x, norm.axis, None
    order = permutation(turned)
    return turned.inputs[0], order[norm.axis], order


def _root_mean_square(build: Builder, x: ir.Value, axis: int, norm: Norm) -> ir.Value:
    """sqrt(mean(x^2) + epsilon): over the last axis as runtimes fuse it, over other axes without a map of x^2."""
    dtype, small = float_type(x), _reduced(x, axis)
    axes = build.ints("axes", axis)
    if x.shape is not None and axis == len(x.shape) - 1:
        square = build.value("Pow", [x, build.constant("two", np.asarray(2, dtype))], like=x)
        mean = build.value("ReduceMean", [square, axes], like=x, shape=small)
    else:
        length = build.value("ReduceL2", [x, axes], like=x, shape=small)
        square = build.value("Mul", [length, length], like=length)
        mean = build.value(
            "Mul", [square, build.constant("share", np.asarray(1 / norm.weight.size, dtype))], like=length
        )
    epsilon = build.constant("epsilon", np.asarray(norm.epsilon, dtype))
    return build.value("Sqrt", [build.value("Add", [mean, epsilon], like=mean)], like=mean)


def _reduced(x: ir.Value, axis: int) -> list[Any]:
    if x.shape is None:
        raise ValueError(f"{x.name} has no shape")
    return [1 if each == axis else length for each, length in enumerate(x.shape)]

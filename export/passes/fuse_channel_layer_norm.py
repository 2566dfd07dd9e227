# SPDX-License-Identifier: Apache-2.0
"""LayerNorm over the channels of an NCHW map, written out in primitives -> LayerNormalization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, computed_and_constant, constant, module_of, producer, replace
from .base import Pass, no_match

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)


@dataclass(frozen=True)
class ChannelNorm:
    """weight * (x - mean) / sqrt(var + epsilon) + bias over axis 1 of x."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value
    epsilon: float
    readers: tuple[ir.Node, ...]
    """The nodes of the chain that read x."""


@dataclass(frozen=True)
class FuseChannelLayerNorm(Pass):
    """weight * (x - mean) / sqrt(var + eps) + bias over axis 1 -> Transpose, LayerNormalization, Transpose.

    One node keeps its statistics in float32 in a low-precision graph; the chain's square overflows
    float16. Afterwards no such chain is left.
    """

    def rewrite(self, model: ir.Model) -> int:
        rewrites = 0
        for node in list(model.graph):
            if node.op_type == "Add" and (match := match_channel_norm(node)) is not None:
                _fuse(node, match)
                rewrites += 1
        return rewrites

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_type == "Add" and match_channel_norm(node) is not None:
                return f"{node.name} of {module_of(node)} is still a written-out norm"
        return None


def match_channel_norm(add: ir.Node) -> ChannelNorm | None:
    """The norm whose last node this is, or None."""
    scaled, bias = computed_and_constant(add, "Add")
    divided, weight = computed_and_constant(_maker(scaled), "Mul")
    division = producer(divided, "Div")
    if division is None or bias is None or weight is None:
        return None
    root = producer(division.inputs[1], "Sqrt")
    variance, epsilon = computed_and_constant(None if root is None else _maker(root.inputs[0]), "Add")
    squared = _mean_over_channels(variance)
    square = producer(squared, "Pow")
    if square is None or square.inputs[0] is not division.inputs[0] or _scalar(square.inputs[1]) != 2:
        return None
    difference = producer(division.inputs[0], "Sub")
    x = None if difference is None else difference.inputs[0]
    if difference is None or x is None or _mean_over_channels(difference.inputs[1]) is not x:
        no_match("the mean is not over axis 1 of the same map", add)
        return None
    eps = _scalar(epsilon)
    if eps is None or not (_per_channel(weight, x) and _per_channel(bias, x)):
        no_match("epsilon is not constant, or weight and bias are not one number for each channel of NCHW", add)
        return None
    mean = producer(difference.inputs[1], "ReduceMean")
    return ChannelNorm(x, weight, bias, eps, (difference, *([] if mean is None else [mean])))


def _per_channel(value: ir.Value, x: ir.Value) -> bool:
    """Whether a constant has the shape (C, 1, 1) or (1, C, 1, 1) of x's channels."""
    array = constant(value)
    if array is None or x.shape is None or len(x.shape) != 4 or not isinstance(x.shape[1], int):
        return False
    channels = x.shape[1]
    return array.size == channels and array.ndim >= 3 and array.shape[-3:] == (channels, 1, 1)


def _fuse(add: ir.Node, match: ChannelNorm) -> None:
    build = Builder(add)
    shape = match.x.shape
    nhwc = None if shape is None else [shape[axis] for axis in TO_NHWC]
    tokens = build.value("Transpose", [match.x], attributes={"perm": TO_NHWC}, like=match.x, shape=nhwc)
    affine = [
        build.constant(f"{module_of(add)}.{name}", np.asarray(constant(value)).reshape(-1))
        for name, value in (("weight", match.weight), ("bias", match.bias))
    ]
    norm = build.value(
        "LayerNormalization",
        [tokens, *affine],
        attributes={"axis": -1, "epsilon": match.epsilon, "stash_type": 1},
        like=tokens,
    )
    replace(add.outputs[0], build.value("Transpose", [norm], attributes={"perm": TO_NCHW}, like=match.x))


def _maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _mean_over_channels(value: ir.Value | None) -> ir.Value | None:
    """x of ReduceMean(x, axes=[1], keepdims=1), or None."""
    node = producer(value, "ReduceMean")
    if node is None or attribute(node, "keepdims", 1) != 1 or len(node.inputs) < 2:
        return None
    axes = constant(node.inputs[1])
    return node.inputs[0] if axes is not None and axes.tolist() == [1] else None


def _scalar(value: ir.Value | None) -> float | None:
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None

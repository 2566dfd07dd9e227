# SPDX-License-Identifier: Apache-2.0
"""Linear layers on NHWC tokens that end in a transpose to NCHW -> 1x1 convolutions in NCHW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import Builder, constant, only_use, permutation, producer, replace, size
from .base import Pass
from .fuse_channel_layer_norm import TO_NCHW

_ELEMENTWISE = ("Gelu", "Relu", "Erf", "Sigmoid", "Sqrt")


@dataclass(frozen=True)
class LinearToPointwiseConv(Pass):
    """Hoist Transpose(NHWC -> NCHW) over activations and linear layers; the linear layers become 1x1 Conv.

    ONNX Runtime keeps convolutions, their activations and residual sums in one blocked layout and
    folds the transposes that are left into its reorders; MatMul breaks that chain (hornet_t: 10 % of
    the latency). Afterwards no Transpose to NCHW follows a linear layer that only it reads.
    """

    def rewrite(self, model: ir.Model) -> int:
        rewrites = 0
        work = [node for node in model.graph if _to_nchw(node)]
        while work:
            transpose = work.pop()
            hoisted = _hoist(transpose)
            if hoisted is not None:
                work.append(hoisted)
                rewrites += 1
        return rewrites

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if _to_nchw(node) and linear_layer(node.inputs[0]) is not None:
                return f"{node.name} still follows a linear layer"
        return None


def _to_nchw(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and permutation(node) == TO_NCHW


def _hoist(transpose: ir.Node) -> ir.Node | None:
    """Move the transpose above the node before it; returns the moved transpose, or None."""
    value = transpose.inputs[0]
    before = None if value is None else value.producer()
    if value is None or before is None or not only_use(value):
        return None
    if _activation(before):
        return _hoist_over_activation(transpose, before)
    linear = linear_layer(value)
    return None if linear is None else _replace_linear(transpose, *linear)


def _activation(node: ir.Node) -> bool:
    """Elementwise on one value: also a product with itself, and a product or sum with one number."""
    if node.domain != "" or node.op_type not in ("Mul", "Add"):
        return node.domain == "" and node.op_type in _ELEMENTWISE
    numbers = [constant(each) for each in node.inputs]
    return node.inputs[0] is node.inputs[1] or any(each is not None and each.size == 1 for each in numbers)


def _hoist_over_activation(transpose: ir.Node, activation: ir.Node) -> ir.Node:
    build = Builder(activation)
    result = transpose.outputs[0]
    computed = next(each for each in activation.inputs if constant(each) is None)
    moved = build.node("Transpose", [computed], {"perm": TO_NCHW}, like=result)
    operands = [each if constant(each) is not None else moved.outputs[0] for each in activation.inputs]
    replace(result, build.value(activation.op_type, operands, attributes=dict(activation.attributes), like=result))
    return moved


def linear_layer(value: ir.Value | None) -> tuple[ir.Node, ir.Value | None] | None:
    """`linear_layer_of` a value that has one reader, or None."""
    return linear_layer_of(value) if value is not None and only_use(value) else None


def linear_layer_of(value: ir.Value | None) -> tuple[ir.Node, ir.Value | None] | None:
    """(MatMul with a constant 2-D weight, bias or None) that makes the value, or None."""
    bias = None
    if (add := producer(value, "Add")) is not None:
        pair = next((p for p in (add.inputs, add.inputs[::-1]) if constant(p[1]) is not None), None)
        if pair is None or pair[0] is None or not only_use(pair[0]):
            return None
        value, bias = pair
    matmul = producer(value, "MatMul")
    weight = None if matmul is None else constant(matmul.inputs[1])
    if matmul is None or weight is None or weight.ndim != 2:
        return None
    offset = constant(bias)
    if offset is not None and offset.size not in (1, offset.shape[-1]):
        return None  # more than one number for each feature: no convolution's bias
    return matmul, bias


def pointwise_conv(
    build: Builder, x: ir.Value, matmul: ir.Node, bias: ir.Value | None, *, like: ir.Value, shape: Sequence[Any] | None
) -> ir.Value:
    """A linear layer as a 1x1 convolution of an NCHW map."""
    matrix = matmul.inputs[1]
    weight = constant(matrix)
    if matrix is None or weight is None:
        raise ValueError("not a linear layer")
    inputs = [x, build.constant(f"{matrix.name}.conv", weight.T[:, :, None, None])]
    if bias is not None and (offset := constant(bias)) is not None:
        inputs.append(build.constant(f"{bias.name}.conv", np.broadcast_to(offset.reshape(-1), weight.shape[1:])))
    return build.value("Conv", inputs, attributes={"kernel_shape": (1, 1)}, like=like, shape=shape)


def _replace_linear(transpose: ir.Node, matmul: ir.Node, bias: ir.Value | None) -> ir.Node:
    build = Builder(matmul)
    result, x, weight = transpose.outputs[0], matmul.inputs[0], constant(matmul.inputs[1])
    if x is None or weight is None or result.shape is None:
        raise ValueError("not a linear layer")
    shape = [result.shape[0], weight.shape[0], *(size(result, axis) for axis in (2, 3))]
    moved = build.node("Transpose", [x], {"perm": TO_NCHW}, like=result, shape=shape)
    replace(result, pointwise_conv(build, moved.outputs[0], matmul, bias, like=result, shape=None))
    return moved

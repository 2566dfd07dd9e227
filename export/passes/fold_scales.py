# SPDX-License-Identifier: Apache-2.0
"""Multiplications by constants -> into the weights of the layer before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder, attribute, constant, only_use, permutation, replace
from .base import Pass, no_match

Array = NDArray[Any]
_T = TypeVar("_T")

_INTO_WEIGHTS = {"Conv": 1, "MatMul": -1, "Gemm": -1, "LayerNormalization": -1}
"""Layers that take a scale per output feature, and the axis of their output that holds the features."""


@dataclass(frozen=True)
class FoldScales(Pass):
    """Layer scales, gnConv's s = 1/3 and other constant factors disappear into Conv, MatMul, Gemm and
    LayerNormalization, through transposes and bias additions (one number for all also through reshapes),
    where nothing else reads the layer.
    """

    def rewrite(self, model: ir.Model) -> int:
        return sum(_fold(node) for node in list(model.graph) if node.op_type == "Mul" and node.domain == "")


def _fold(mul: ir.Node) -> bool:
    value, scale = mul.inputs
    if constant(scale) is None:
        value, scale = scale, value
    factor = constant(scale)
    if value is None or factor is None or value.shape is None:
        return False
    if factor.ndim > len(value.shape) or value.shape != mul.outputs[0].shape:
        no_match("the factor changes the shape", mul)
        return False
    factor = factor.reshape((1,) * (len(value.shape) - factor.ndim) + factor.shape)
    if not _absorbs(value, factor):
        no_match("no layer with weights before it takes the factor", mul)
        return False
    _absorb(value, factor)
    replace(mul.outputs[0], value)
    return True


def _absorbs(value: ir.Value, factor: Array) -> bool:
    """Whether the layers that make the value can be scaled by a factor that broadcasts to it."""
    node = value.producer()
    if node is None or node.domain != "" or value.index() != 0 or not only_use(value):
        return False
    if node.op_type == "Transpose" and node.inputs[0] is not None:
        return _absorbs(node.inputs[0], _before_transpose(node, factor))
    if node.op_type == "Reshape" and node.inputs[0] is not None:
        return factor.size == 1 and _absorbs(node.inputs[0], _before_reshape(node, factor))
    if node.op_type == "Add":
        return any(
            layer is not None
            and layer.shape == value.shape  # a bias that broadcasts the layer up would shift the factor's axes
            and constant(bias) is not None
            and _absorbs(layer, factor)
            for layer, bias in (node.inputs, node.inputs[::-1])
        )
    axis = _INTO_WEIGHTS.get(node.op_type)
    weights = [constant(weight) for weight in node.inputs[1:] if weight is not None]
    if axis is None or any(weight is None for weight in weights):
        return False
    if node.op_type == "MatMul" and any(weight is not None and weight.ndim != 2 for weight in weights):
        return False
    return bool(factor.size == factor.shape[axis])


def _absorb(value: ir.Value, factor: Array) -> None:
    node = value.producer()
    if node is None:
        raise ValueError(f"{value.name} is not computed")
    if node.op_type == "Transpose" and node.inputs[0] is not None:
        _absorb(node.inputs[0], _before_transpose(node, factor))
    elif node.op_type == "Reshape" and node.inputs[0] is not None:
        _absorb(node.inputs[0], _before_reshape(node, factor))
    elif node.op_type == "Add":
        layer = 0 if constant(node.inputs[1]) is not None else 1
        _scale_input(node, 1 - layer, factor)
        _absorb(_required(node.inputs[layer]), factor)
    else:
        _scale_weights(node, factor.reshape(-1))


def _scale_weights(node: ir.Node, factor: Array) -> None:
    """factor: (features,) or (1,)."""
    if node.op_type == "Conv":
        _scale_input(node, 1, factor.reshape(-1, *(1,) * (_required(constant(node.inputs[1])).ndim - 1)))
    elif node.op_type == "Gemm" and attribute(node, "transB", 0):
        _scale_input(node, 1, factor[:, None])
    else:
        _scale_input(node, 1, factor)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        _scale_input(node, 2, factor)


def _scale_input(node: ir.Node, index: int, factor: Array) -> None:
    old = _required(node.inputs[index])
    weight = _required(constant(old))
    # The product is taken in float64 and rounded once; its rank stays the weight's where it can.
    scaled = (weight.astype(np.float64) * factor).astype(weight.dtype)
    while scaled.ndim > weight.ndim and scaled.shape[0] == 1:
        scaled = scaled[0]
    node.replace_input_with(index, Builder(node).constant(f"{old.name}.scaled", scaled))


def _before_transpose(node: ir.Node, factor: Array) -> Array:
    return factor.transpose(np.argsort(permutation(node)))


def _before_reshape(node: ir.Node, factor: Array) -> Array:
    """One number, in the rank of what is reshaped."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    return factor.reshape((1,) * (0 if shape is None else len(shape)))


def _required(value: _T | None) -> _T:
    if value is None:
        raise ValueError("an operand is missing")
    return value

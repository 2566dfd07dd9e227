# SPDX-License-Identifier: Apache-2.0
"""Constant factors and offsets -> into the weights and biases of the layer that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder, attribute, computed_and_constant, constant, only_reader, permutation, replace
from .base import Pass, no_match

Array = NDArray[Any]


@dataclass(frozen=True)
class FoldAffineIntoNext(Pass):
    """W (s * x + b) = (W s) x + W b: the affine part of a norm and of StarReLU disappears into the one layer that
    reads it, MatMul or Conv, also through transposes.

    An offset passes a convolution only where nothing is padded: the padding is not offset.
    """

    def rewrite(self, model: ir.Model) -> int:
        # From the last to the first, so that s * x + b goes in offset first and then the factor.
        candidates = [node for node in model.graph if node.domain == "" and node.op_type in ("Mul", "Add")]
        return sum(_fold(node) for node in reversed(candidates))


def _fold(node: ir.Node) -> bool:
    value, number = computed_and_constant(node, node.op_type)
    factor, result = constant(number), node.outputs[0]
    if value is None or factor is None or value.shape != result.shape:
        return False
    if result.shape is None or factor.ndim > len(result.shape):
        return False
    found = _next_layer(result, factor.reshape((1,) * (len(result.shape) - factor.ndim) + factor.shape))
    if found is None:
        no_match("no layer with weights is its only reader", node)
        return False
    layer, numbers = found
    if node.op_type == "Mul":
        _scale(layer, numbers)
    elif not _shift(layer, numbers):
        no_match("the next convolution pads", node)
        return False
    replace(result, value)
    return True


def _next_layer(value: ir.Value, factor: Array) -> tuple[ir.Node, Array] | None:
    """The only reader with weights, and the factor as one number for each of its input features (or one for all)."""
    found = only_reader(value)
    if found is None:
        return None
    reader, index = found
    if index != 0 or reader.domain != "":
        return None
    if reader.op_type == "Transpose":
        return _next_layer(reader.outputs[0], factor.transpose(permutation(reader)))
    if reader.op_type not in ("MatMul", "Conv"):
        return None
    weights = [constant(each) for each in reader.inputs[1:] if each is not None]
    if any(each is None for each in weights):
        return None
    weight = constant(reader.inputs[1])
    axis = 1 if reader.op_type == "Conv" else factor.ndim - 1
    if (
        weight is None
        or (reader.op_type == "MatMul" and weight.ndim != 2)
        or factor.size not in (1, factor.shape[axis])
    ):
        return None
    return reader, factor.reshape(-1)


def _scale(layer: ir.Node, numbers: Array) -> None:
    weight = constant(layer.inputs[1])
    if weight is None:
        raise ValueError(f"{layer.name} has no constant weight")
    _set(layer, 1, weight.astype(np.float64) * _per_input(layer, weight, numbers), weight.dtype, "scaled")


def _per_input(layer: ir.Node, weight: Array, numbers: Array) -> Array:
    """The numbers in the shape in which they multiply the layer's weight."""
    if numbers.size == 1:
        return numbers.astype(np.float64)
    if layer.op_type == "MatMul":
        return numbers[:, None].astype(np.float64)
    groups, per_group = attribute(layer, "group", 1), weight.shape[1]
    by_output = numbers.reshape(groups, per_group).repeat(weight.shape[0] // groups, axis=0)
    return by_output.reshape(weight.shape[0], per_group, *(1,) * (weight.ndim - 2)).astype(np.float64)


def _shift(layer: ir.Node, numbers: Array) -> bool:
    weight = constant(layer.inputs[1])
    if weight is None:
        raise ValueError(f"{layer.name} has no constant weight")
    moved = weight.astype(np.float64) * _per_input(layer, weight, numbers)
    if layer.op_type == "MatMul":
        _add_after(layer, moved.sum(0).astype(weight.dtype))
        return True
    if any(attribute(layer, "pads", ())) or attribute(layer, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    offset = moved.sum(tuple(range(1, weight.ndim)))
    if len(layer.inputs) > 2 and layer.inputs[2] is not None:
        offset = offset + constant(layer.inputs[2])
        _set(layer, 2, offset, weight.dtype, "shifted")
    else:
        name = "offset" if layer.inputs[1] is None else f"{layer.inputs[1].name}.offset"
        bias = Builder(layer).constant(name, offset.astype(weight.dtype))
        layer.resize_inputs(3)
        layer.replace_input_with(2, bias)
    return True


def _add_after(layer: ir.Node, offset: Array) -> None:
    """The offset joins the bias that follows the product, or becomes one."""
    result = layer.outputs[0]
    if (found := only_reader(result)) is not None:
        reader, index = found
        bias = reader.inputs[1 - index] if reader.op_type == "Add" and reader.domain == "" else None
        numbers = constant(bias)
        if numbers is not None and numbers.shape == offset.shape:
            _set(reader, 1 - index, numbers.astype(np.float64) + offset, numbers.dtype, "shifted")
            return
    name = "bias" if layer.inputs[1] is None else f"{layer.inputs[1].name}.offset"
    build = Builder(layer)
    product = build.value("MatMul", layer.inputs, like=result)
    replace(result, build.value("Add", [product, build.constant(name, offset)], like=result))


def _set(node: ir.Node, index: int, array: Array, dtype: np.dtype[Any], suffix: str) -> None:
    """The product is taken in float64 and rounded once."""
    old = node.inputs[index]
    name = suffix if old is None else f"{old.name}.{suffix}"
    node.replace_input_with(index, Builder(node).constant(name, array.astype(dtype)))

# SPDX-License-Identifier: Apache-2.0
"""What is in a graph where known issues of TensorRT come up: one question about a node each."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...export.graph import attribute, constant, only_reader, producer

STANDARD_DOMAINS = ("", "ai.onnx")
TOP_K_MAX = 3840
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FUSED_HEAD_MIN = 9
"""Smallest head dimension at which issue 4826 saw the fused attention kernel chosen."""
_ACTIVATIONS = frozenset(
    {"Celu", "Clip", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "Relu", "Selu", "Sigmoid", "Swish", "Tanh"}
)
_BETWEEN_PRODUCT_AND_SOFTMAX = frozenset({"Add", "Cast", "Div", "Mul", "Where"})


def length(value: ir.Value | None, axis: int) -> int | None:
    """Static length of one axis; None where it is dynamic or unknown."""
    shape = None if value is None else value.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether a node is one of these operators of the standard domain."""
    return node.domain in STANDARD_DOMAINS and node.op_type in op_types


def rank_of(value: ir.Value | None) -> int | None:
    """None where it is unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def _type(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def dft_axis(node: ir.Node) -> int | None:
    """Axis of a DFT node, counted from the last (-1); None where it or the rank is not known."""
    rank = rank_of(node.inputs[0])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = constant(node.inputs[2])
        axis = None if given is None else int(given.item())
    else:
        opset = 20 if node.graph is None else node.graph.opset_imports.get("", 20)
        axis = int(attribute(node, "axis", 1 if opset < 20 else -2))
    if axis is None or axis < 0:
        return axis
    return None if rank is None else axis - rank


def is_dft(node: ir.Node) -> bool:
    """Whether it is a DFT."""
    return is_standard(node, "DFT")


def transforms_other_lengths_in_half(node: ir.Node) -> bool:
    """Whether it is a 16-bit DFT whose length is not known to be a power of two."""
    if not is_standard(node, "DFT") or _type(node.inputs[0]) not in _HALF:
        return False
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is not None:
        return int(given.item()).bit_count() != 1
    axis = dft_axis(node)
    points = None if axis is None else length(node.inputs[0], axis)
    return points is None or points.bit_count() != 1


def takes_too_many(node: ir.Node) -> bool:
    """Whether it is a TopK of more elements than TensorRT's takes."""
    if not is_standard(node, "TopK"):
        return False
    given = constant(node.inputs[1])
    return given is not None and int(given.item()) > TOP_K_MAX


def convolves_groups(node: ir.Node) -> bool:
    """Whether a convolution in groups of several channels is in float16, and not quantised."""
    return _convolves_in_groups(node) and length(node.inputs[1], 1) != 1


def convolves_depthwise(node: ir.Node) -> bool:
    """Likewise in groups of one channel."""
    return _convolves_in_groups(node) and length(node.inputs[1], 1) == 1


def _convolves_in_groups(node: ir.Node) -> bool:
    if not is_standard(node, "Conv") or _type(node.inputs[0]) != ir.DataType.FLOAT16:
        return False
    return attribute(node, "group", 1) != 1 and producer(node.inputs[1], "DequantizeLinear") is None


def turns_network_input_into_operand(node: ir.Node) -> bool:
    """Whether it transposes a 16-bit network input for attention that TensorRT fuses."""
    if not is_standard(node, "Transpose") or _type(node.inputs[0]) not in _HALF:
        return False
    source = node.inputs[0]
    if source is None or not source.is_graph_input():
        return False
    return any(_is_fused_operand(use.node, use.idx) for use in node.outputs[0].uses())


def _is_fused_operand(reader: ir.Node, index: int) -> bool:
    """Whether a MatMul reads it as query, key or value of an attention that TensorRT fuses."""
    if not is_standard(reader, "MatMul"):
        return False
    operand = reader.inputs[index]
    weighs = index == 1 and producer(reader.inputs[0], "Softmax") is not None
    if not weighs and not _becomes_weights(reader.outputs[0]):
        return False
    dimension = length(operand, -1 if weighs or index == 0 else -2)
    heads = [1] if operand is None or operand.shape is None else list(operand.shape[:-2])
    return (dimension is None or dimension >= _FUSED_HEAD_MIN) and any(size != 1 for size in heads)


def _becomes_weights(logits: ir.Value) -> bool:
    """Whether a Softmax and a second MatMul follow, past scales and masks."""
    reader = only_reader(logits)
    while reader is not None and is_standard(reader[0], *_BETWEEN_PRODUCT_AND_SOFTMAX):
        reader = only_reader(reader[0].outputs[0])
    if reader is None or not is_standard(reader[0], "Softmax"):
        return False
    weighted = only_reader(reader[0].outputs[0])
    return weighted is not None and is_standard(weighted[0], "MatMul") and weighted[1] == 0


def adds_to_part_of_concat(node: ir.Node) -> bool:
    """Whether a float16 convolution's activation is added to what a Concat reads as well."""
    if not is_standard(node, "Conv") or _type(node.outputs[0]) != ir.DataType.FLOAT16:
        return False
    activated = _activated(node.outputs[0])
    if activated is None:
        return False
    additions = [use for use in activated.uses() if is_standard(use.node, "Add")]
    others = [use.node.inputs[1 - use.idx] for use in additions]
    return any(is_standard(use.node, "Concat") for other in others if other is not None for use in other.uses())


def _activated(value: ir.Value) -> ir.Value | None:
    """What an activation makes of a value, x * sigmoid(x) among them; None if there is none."""
    for use in value.uses():
        product = only_reader(use.node.outputs[0]) if is_standard(use.node, "Sigmoid") else None
        if product is not None and is_standard(product[0], "Mul") and value in product[0].inputs:
            return product[0].outputs[0]
    reader = only_reader(value)
    return reader[0].outputs[0] if reader is not None and is_standard(reader[0], *_ACTIVATIONS) else None


def is_plugin(node: ir.Node) -> bool:
    """Whether it is a node of ours that a plugin builds."""
    return node.domain not in STANDARD_DOMAINS and "plugin_namespace" in node.attributes


def computes_with_uint8(node: ir.Node) -> bool:
    """Whether it reads or makes unsigned bytes, other than a Cast at an end of the network."""
    if is_standard(node, "Cast", "CastLike"):
        source, made = node.inputs[0], node.outputs[0]
        inside = source is not None and source.dtype == ir.DataType.UINT8 and not source.is_graph_input()
        return inside or (made.dtype == ir.DataType.UINT8 and not made.is_graph_output())
    return any(_type(value) == ir.DataType.UINT8 for value in (*node.inputs, *node.outputs))


def has_zero_point(node: ir.Node) -> bool:
    """Whether it quantises around something that is not known to be 0."""
    if not is_standard(node, "QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    zero_point = constant(node.inputs[2])
    return zero_point is None or bool(zero_point.astype(np.float32).any())


def dequantises_int32(node: ir.Node) -> bool:
    """Whether it dequantises 32-bit integers, as biases come."""
    return is_standard(node, "DequantizeLinear") and _type(node.inputs[0]) == ir.DataType.INT32


def scales_other_axis(node: ir.Node) -> bool:
    """Whether the weight of a convolution has scales along another axis than its output channels."""
    pair = producer(node.inputs[1], "DequantizeLinear") if is_standard(node, "Conv") else None
    scale = None if pair is None else constant(pair.inputs[1])
    rank = rank_of(node.inputs[1]) if pair is not None else None
    if pair is None or scale is None or rank is None or scale.ndim != 1 or scale.size == 1:
        return False
    return int(attribute(pair, "axis", 1)) % rank != 0

# SPDX-License-Identifier: Apache-2.0
"""1x1 convolutions on NCHW maps that have no convolution beside them -> linear layers on NHWC maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, attribute, constant, only_use, permutation, producer, replace
from .base import Pass, no_match
from .fuse_channel_layer_norm import TO_NCHW, TO_NHWC


@dataclass(frozen=True)
class PointwiseConvToLinear(Pass):
    """Conv becomes Transpose, MatMul, Add and Transpose back; a GELU behind it moves in front of the second.

    In eight bits ONNX Runtime has a convolution's result in eight bits, which is converted for whoever reads it in
    float32; a linear layer gives float32. So a convolution stays where a neighbour is one, or a gate, which multiplies
    the result of one for another. Afterwards no other 1x1 convolution with one group and stride 1 is left.
    """

    def rewrite(self, model: ir.Model) -> int:
        rewrites = 0
        while found := [node for node in model.graph if _to_be_linear(node)]:
            for node in found:
                _rewrite(node)
            rewrites += len(found)
        for node in list(model.graph):
            if node.op_type == "Gelu" and node.domain == "":
                _hoist(node)
        return rewrites

    def ensures(self, graph: ir.Graph) -> str | None:
        return next((f"{node.name} is still a convolution" for node in graph if _to_be_linear(node)), None)


def _to_be_linear(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain != "" or attribute(node, "group", 1) != 1:
        return False
    weight = constant(node.inputs[1])
    offset = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or weight.shape[2:] != (1, 1) or (len(node.inputs) > 2 and offset is None):
        return False
    if any(each != 1 for each in attribute(node, "strides", (1, 1))) or any(attribute(node, "pads", (0,))):
        return False
    result = node.outputs[0]
    if result.shape is None or result.is_graph_output():
        return False
    if _gives_eight_bits(node.inputs[0]) or any(_takes_eight_bits(each) for each in _readers(result)):
        no_match("its neighbour computes in eight bits", node)
        return False
    return True


def _gives_eight_bits(value: ir.Value | None) -> bool:
    """Whether a convolution makes the value, or a gate between two."""
    if (relu := producer(value, "Relu")) is not None:
        total = producer(relu.inputs[0], "Add")
        return any(_gives_eight_bits(each) for each in (relu if total is None else total).inputs)
    node = None if value is None else value.producer()
    return node is not None and _takes_eight_bits(node)


def _takes_eight_bits(node: ir.Node) -> bool:
    """Whether it is a convolution, or a gate that multiplies one's result for another one."""
    return node.op_type == "Conv" or (
        node.op_type == "Mul"
        and any(producer(factor, "Conv") is not None for factor in node.inputs)
        and any(use.node.op_type == "Conv" for use in node.outputs[0].uses())
    )


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """What reads the value, also through a ReLU or through a sum that a ReLU reads, as in a ResNet."""
    for reader in (use.node for use in value.uses()):
        if reader.op_type == "Relu":
            yield from (use.node for use in reader.outputs[0].uses())
        elif reader.op_type == "Add":
            yield from (
                each
                for use in reader.outputs[0].uses()
                if use.node.op_type == "Relu"
                for each in _readers(use.node.outputs[0])
            )
        else:
            yield reader


def _rewrite(conv: ir.Node) -> None:
    result, matrix, weight = conv.outputs[0], conv.inputs[1], constant(conv.inputs[1])
    if result.shape is None or weight is None or matrix is None:
        raise ValueError("not a 1x1 convolution")
    build, (batch, outputs, height, width) = Builder(conv), result.shape
    channels_last = [batch, height, width]
    turned = build.value(
        "Transpose",
        [conv.inputs[0]],
        attributes={"perm": TO_NHWC},
        like=result,
        shape=[*channels_last, weight.shape[1]],
    )
    linear = build.constant(f"{matrix.name}.linear", weight[:, :, 0, 0].T)
    made = build.value("MatMul", [turned, linear], like=result, shape=[*channels_last, outputs])
    if len(conv.inputs) > 2:
        made = build.value("Add", [made, conv.inputs[2]], like=result, shape=[*channels_last, outputs])
    replace(result, build.value("Transpose", [made], attributes={"perm": TO_NCHW}, like=result))


def _hoist(gelu: ir.Node) -> None:
    """Move a Transpose in front of a GELU behind it, where `MergeTransposes` may find the next."""
    transpose, result = producer(gelu.inputs[0], "Transpose"), gelu.outputs[0]
    if transpose is None or transpose.inputs[0] is None or not only_use(transpose.outputs[0]):
        return
    build, x = Builder(gelu), transpose.inputs[0]
    moved = build.value("Gelu", [x], attributes=dict(gelu.attributes), like=x)
    replace(result, build.value("Transpose", [moved], attributes={"perm": permutation(transpose)}, like=result))

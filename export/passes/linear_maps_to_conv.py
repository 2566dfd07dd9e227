# SPDX-License-Identifier: Apache-2.0
"""Linear layers on NHWC maps, also as tokens -> 1x1 convolutions between transposes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, only_reader, producer, replace, size
from .base import Pass
from .fuse_channel_layer_norm import TO_NCHW, TO_NHWC
from .linear_to_pointwise_conv import linear_layer_of, pointwise_conv


@dataclass(frozen=True)
class LinearMapsToConv(Pass):
    """What `LinearToPointwiseConv` leaves because nothing behind it is channels first becomes a convolution, too.

    OpenVINO's kernels for convolutions in eight bits are twice as fast as in float32 on a CPU with AVX2; those for
    matrix products are slower there, and some graphs with them it cannot load. A layer that reads the tokens of a map,
    (B, H, W, C) reshaped to (B, HW, C), is moved in front of the reshape first. Afterwards no linear layer reads a map.
    """

    def rewrite(self, model: ir.Model) -> int:
        return sum(_rewrite(node) for node in list(model.graph))

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            x = node.inputs[0] if node.op_type == "MatMul" and node.inputs else None
            if x is not None and x.shape is not None and len(x.shape) == 4 and _result(node) is not None:
                return f"{node.name} is still a matrix product on a map"
        return None


def _rewrite(matmul: ir.Node) -> bool:
    """Whether it is a linear layer on a map, or on its tokens, which is a convolution now."""
    result = _result(matmul)
    layer, maker = linear_layer_of(result), None if result is None else result.producer()
    tokens = matmul.inputs[0] if layer is not None else None
    channels_last = None if tokens is None else _map_of(tokens)
    if result is None or layer is None or maker is None or channels_last is None or channels_last.shape is None:
        return False
    batch, height, width, channels = channels_last.shape
    build, outputs = Builder(maker), size(result, -1)
    x = build.value(
        "Transpose",
        [channels_last],
        attributes={"perm": TO_NCHW},
        like=channels_last,
        shape=[batch, channels, height, width],
    )
    made = pointwise_conv(build, x, *layer, like=result, shape=[batch, outputs, height, width])
    made = build.value(
        "Transpose", [made], attributes={"perm": TO_NHWC}, like=result, shape=[batch, height, width, outputs]
    )
    if channels_last is not tokens:
        made = build.value("Reshape", [made, build.ints("tokens", 0, size(result, 1), outputs)], like=result)
    replace(result, made)
    return True


def _result(matmul: ir.Node) -> ir.Value | None:
    """What a linear layer makes, its bias added, by its MatMul; None for any other node."""
    if matmul.op_type != "MatMul" or matmul.domain != "" or linear_layer_of(matmul.outputs[0]) is None:
        return None
    reader = only_reader(matmul.outputs[0])
    if reader is not None:
        total = reader[0].outputs[0]
        layer = linear_layer_of(total)
        if layer is not None and layer[0] is matmul:
            return total
    return matmul.outputs[0]


def _map_of(x: ir.Value) -> ir.Value | None:
    """The NHWC map itself, or the one whose tokens these are."""
    if x.shape is None or len(x.shape) == 4:
        return x if x.shape is not None else None
    reshape = producer(x, "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    if source is None or source.shape is None or len(source.shape) != 4 or len(x.shape) != 3:
        return None
    return source if source.shape[0] == x.shape[0] and source.shape[3] == x.shape[2] else None

# SPDX-License-Identifier: Apache-2.0
"""Residual sums of channels-last blocks -> the same sums on channels-first maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, constant, float_type, only_use, permutation, producer, replace, size
from .base import Pass
from .fuse_channel_layer_norm import TO_NCHW, TO_NHWC
from .linear_to_pointwise_conv import linear_layer
from .streams import sums_that_only_norms_read


@dataclass(frozen=True)
class ResidualsToChannelsFirst(Pass):
    """x + f(x) on (B, H, W, C) maps is added as (B, C, H, W); only the norms still see channels last.

    The residual stream is then in the layout of the convolutions, and `LinearToPointwiseConv` turns the
    layers that end in it into 1x1 convolutions. ONNX Runtime keeps the stream in its blocked layout and
    takes bias and residual sum into the convolution. A scale of the stream becomes a depthwise 1x1
    convolution, which stays in that layout. Afterwards no residual sum reads a Transpose to NHWC.
    """

    norms_only: bool = False
    """Only streams that nothing but norms reads, which `CentreResiduals` can take the means out of."""
    for_openvino: bool = False
    """Also sums of maps that were channels first before a transpose; and nothing for the sake of a blocked layout,
    which OpenVINO does not use in eight bits: a scale stays a product."""

    def rewrite(self, model: ir.Model) -> int:
        rewrites = 0
        chosen = sums_that_only_norms_read(model.graph) if self.norms_only else None
        for node in list(model.graph):
            if self._is_residual(node) and (chosen is None or node in chosen):
                _turn(node, blocked=not self.for_openvino)
                rewrites += 1
        return rewrites

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in () if self.norms_only else graph:
            if self._is_residual(node):
                return f"{node.name} still adds channels-last maps"
        return None

    def _is_residual(self, node: ir.Node) -> bool:
        if not _adds_maps(node):
            return False
        return any(linear_layer(each) is not None or (self.for_openvino and _turned(each)) for each in node.inputs)


def _adds_maps(node: ir.Node) -> bool:
    """Whether it adds two equal computed maps, of known size but for the batch, and is not an output itself."""
    if node.op_type != "Add" or node.domain != "" or node.outputs[0].is_graph_output():
        return False
    first, second = node.inputs
    if first is None or second is None or constant(first) is not None or constant(second) is not None:
        return False
    if first.shape is None or first.shape != second.shape or len(first.shape) != 4:
        return False
    return all(isinstance(length, int) for length in list(first.shape)[1:])


def _turned(value: ir.Value | None) -> bool:
    before = producer(value, "Transpose")
    return before is not None and permutation(before) == TO_NHWC


def _turn(add: ir.Node, *, blocked: bool) -> None:
    build, result = Builder(add), add.outputs[0]
    operands = [_channels_first(build, value, blocked=blocked) for value in add.inputs if value is not None]
    total = build.value("Add", operands, like=result, shape=_nchw(result))
    replace(result, build.value("Transpose", [total], attributes={"perm": TO_NHWC}, like=result))


def _channels_first(build: Builder, value: ir.Value, *, blocked: bool) -> ir.Value:
    """The NHWC value as NCHW; without a Transpose where it comes from NCHW.

    Args:
        blocked: with convolutions for a runtime that keeps their results in a blocked layout.
    """
    before = producer(value, "Transpose")
    if before is not None and permutation(before) == TO_NHWC and before.inputs[0] is not None:
        return before.inputs[0]
    scale = producer(value, "Mul")
    if scale is not None and only_use(value):
        for stream, factor in (scale.inputs, scale.inputs[::-1]):
            numbers = constant(factor)
            if stream is not None and factor is not None and numbers is not None and numbers.size == size(value, 3):
                first = _channels_first(build, stream, blocked=blocked)
                if not blocked:
                    factors = build.constant(f"{factor.name}.channels", numbers.reshape(-1, 1, 1))
                    return build.value("Mul", [first, factors], like=value, shape=_nchw(value))
                weight = build.constant(f"{factor.name}.conv", numbers.reshape(-1, 1, 1, 1))
                attributes = {"kernel_shape": (1, 1), "group": numbers.size}
                inputs = [first, weight]
                return build.value("Conv", inputs, attributes=attributes, like=value, shape=_nchw(value))
    turned = build.value("Transpose", [value], attributes={"perm": TO_NCHW}, like=value, shape=_nchw(value))
    if not blocked or producer(value, "LayerNormalization") is None:
        return turned
    # A stage that begins with a norm: a convolution that changes nothing brings the stream into the blocked layout.
    channels = size(value, 3)
    weight = build.constant(f"identity_{channels}", np.ones((channels, 1, 1, 1), float_type(value)))
    attributes = {"kernel_shape": (1, 1), "group": channels}
    return build.value("Conv", [turned, weight], attributes=attributes, like=value, shape=_nchw(value))


def _nchw(value: ir.Value) -> list[object]:
    shape = value.shape
    if shape is None:
        raise ValueError(f"{value.name} has no shape")
    return [shape[axis] for axis in TO_NCHW]

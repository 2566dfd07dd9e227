# SPDX-License-Identifier: Apache-2.0
"""Split after convolutions -> one convolution for each part, and no Split."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, constant, only_use, replace, size
from .base import Pass, no_match
from .linear_to_pointwise_conv import linear_layer

_BLOCK = 16
"""Channels of a block in ONNX Runtime's layout for AVX-512; a convolution pads its output to blocks."""


@dataclass(frozen=True)
class DistributeSplits(Pass):
    """Split(Conv(x)) over channels becomes a Conv for each part with its rows of the weight, also through
    depthwise convolutions and other splits in between.

    In ONNX Runtime's blocked layout a Split copies the map into NCHW and back; its parts as separate
    convolutions stay in the layout (hornet_t: 120 reorders of 152 go). A Split that would only move
    up, not disappear, is left alone.
    """

    def rewrite(self, model: ir.Model) -> int:
        rewrites = 0
        # From the last to the first: a lower Split first moves above its depthwise convolution, where
        # it merges with the Split that made that convolution's input.
        for node in reversed(list(model.graph)):
            if node.op_type == "Split" and node.graph is not None:
                rewrites += _distribute(node)
        return rewrites


def _distribute(split: ir.Node) -> bool:
    source = split.inputs[0]
    if source is None or source.shape is None or any(output.is_graph_output() for output in split.outputs):
        return False
    axis = attribute(split, "axis", 0) % len(source.shape)
    if axis == len(source.shape) - 1 and _is_linear(source):
        return _distribute_linear(split, source)
    if axis != 1 or not _disappears(source):
        no_match("it does not end in a convolution that only it reads", split)
        return False
    if any(output.shape is None or not isinstance(output.shape[1], int) for output in split.outputs):
        no_match("the sizes of its parts are not static", split)
        return False
    if all(size(output, 1) < _BLOCK for output in split.outputs):
        no_match("a block of channels would be padded for each of its parts", split)
        return False
    bounds = np.cumsum([0, *(size(output, 1) for output in split.outputs)]).tolist()
    for output, (start, stop) in zip(split.outputs, pairwise(bounds), strict=True):
        if output.uses():
            replace(output, _part(source, start, stop))
    return True


def _is_linear(value: ir.Value) -> bool:
    layer = linear_layer(value)
    if layer is None:
        return False
    bias = constant(layer[1])
    return bias is None or bias.ndim == 1


def _distribute_linear(split: ir.Node, source: ir.Value) -> bool:
    layer = linear_layer(source)
    if layer is None:
        return False
    matmul, bias = layer
    weight, offset = np.asarray(constant(matmul.inputs[1])), constant(bias)
    build, start = Builder(split), 0
    name = "" if matmul.inputs[1] is None else matmul.inputs[1].name
    for output in split.outputs:
        stop = start + size(output, -1)
        if output.uses():
            part = build.constant(f"{name}.{start}_{stop}", weight[:, start:stop])
            made = build.value("MatMul", [matmul.inputs[0], part], like=output)
            if offset is not None:
                own = build.constant(f"{name}.bias.{start}_{stop}", offset[start:stop])
                made = build.value("Add", [made, own], like=output)
            replace(output, made)
        start = stop
    return True


def _disappears(value: ir.Value) -> bool:
    """Whether the value's channels can be made part by part, down to a full convolution."""
    node = value.producer()
    if node is None or not only_use(value) or node.inputs[0] is None:
        return False
    if node.op_type == "Split":
        return attribute(node, "axis", 0) == 1 and _disappears(node.inputs[0])
    if node.op_type != "Conv" or any(constant(weight) is None for weight in node.inputs[1:]):
        return False
    return attribute(node, "group", 1) == 1 or (_depthwise(node) and _disappears(node.inputs[0]))


def _depthwise(conv: ir.Node) -> bool:
    weight = constant(conv.inputs[1])
    return weight is not None and weight.shape[:2] == (attribute(conv, "group", 1), 1)


def _part(value: ir.Value, start: int, stop: int) -> ir.Value:
    """Channels start..stop of the value, made by convolutions of their own."""
    node = value.producer()
    if node is None or node.inputs[0] is None:
        raise ValueError(f"{value.name} is not computed")
    if node.op_type == "Split":
        offset = sum(size(output, 1) for output in node.outputs[: value.index() or 0])
        return _part(node.inputs[0], offset + start, offset + stop)
    x = node.inputs[0]
    attributes = dict(node.attributes)
    if _depthwise(node) and attribute(node, "group", 1) > 1:
        x = _part(x, start, stop)
        attributes["group"] = ir.AttrInt64("group", stop - start)
    build = Builder(node)
    weights = [
        build.constant(f"{weight.name}.{start}_{stop}", np.asarray(constant(weight))[start:stop])
        for weight in node.inputs[1:]
        if weight is not None
    ]
    shape = None if value.shape is None else [value.shape[0], stop - start, *list(value.shape)[2:]]
    return build.value("Conv", [x, *weights], attributes=attributes, like=value, shape=shape)

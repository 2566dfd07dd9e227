# SPDX-License-Identifier: Apache-2.0
"""ACmix's fc after its projections -> one linear layer straight from the block's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder, attribute, constant, only_use, permutation, producer, replace, size
from .base import Pass, no_match
from .fuse_channel_layer_norm import TO_NCHW
from .linear_to_pointwise_conv import linear_layer_of

Array = NDArray[Any]


@dataclass(frozen=True)
class ComposeChannelMixing(Pass):
    """Reshape(q, k, v) -> 1x1 fc over (projection, head) -> Transpose -> Reshape is linear in each pixel's channels,
    and so are the projections before it: the product of both is a layer of 9 * head_dim outputs, already in
    the order that the depthwise convolution reads.

    The reshapes made fc a convolution of 9 maps by 12 or more over a long, thin image (40 GFLOP/s in
    ONNX Runtime), between two copies of q, k and v. Source of the layers: ACmix (Pan et al. 2022), section 4.1.
    """

    def rewrite(self, model: ir.Model) -> int:
        return sum(_compose(node) for node in list(model.graph) if node.op_type == "Reshape" and node.domain == "")


@dataclass(frozen=True)
class _Linear:
    """(features of x, outputs) and (outputs,); `channels_first` says where x has its features."""

    x: ir.Value
    weight: Array
    bias: Array
    channels_first: bool


def _compose(last: ir.Node) -> bool:
    turned = producer(last.inputs[0], "Transpose")
    mixing = None if turned is None or permutation(turned) != (0, 2, 1, 3) else producer(turned.inputs[0], "Conv")
    first = None if mixing is None else producer(mixing.inputs[0], "Reshape")
    weights = None if mixing is None else constant(mixing.inputs[1])
    if mixing is None or first is None or first.inputs[0] is None or weights is None or last.inputs[0] is None:
        return False
    result, maps = last.outputs[0], first.outputs[0]
    if (
        weights.shape[2:] != (1, 1)
        or attribute(mixing, "group", 1) != 1
        or set(attribute(mixing, "strides", (1,))) != {1}
    ):
        no_match("the layer in between is not linear in each pixel", last)
        return False
    if maps.shape is None or not all(only_use(each) for each in (maps, mixing.outputs[0], last.inputs[0])):
        return False
    source = _linear_source(first.inputs[0])
    mixed, positions = size(maps, 1), size(maps, 2)
    if source is None or source.weight.shape[1] != mixed * positions:
        no_match("what it reads does not come from a linear layer", last)
        return False
    build = Builder(last)
    weight = np.einsum("cip,ki->cpk", source.weight.reshape(-1, mixed, positions), weights[:, :, 0, 0])
    bias = np.einsum("ip,ki->pk", source.bias.reshape(mixed, positions), weights[:, :, 0, 0])
    if len(mixing.inputs) > 2 and (offset := constant(mixing.inputs[2])) is not None:
        bias = bias + offset
    replace(result, _apply(build, source, weight.reshape(weight.shape[0], -1), bias.reshape(-1), result))
    return True


def _linear_source(value: ir.Value) -> _Linear | None:
    """How the NCHW value depends on the features of each pixel of one x, in float64."""
    joined = producer(value, "Concat")
    if joined is None or attribute(joined, "axis", 0) != 1:
        return _one_source(value)
    parts = [_one_source(each) if each is not None else None for each in joined.inputs]
    found = [each for each in parts if each is not None]
    if len(found) < len(parts) or any(each.x is not found[0].x for each in found):
        return None
    weight, bias = np.concatenate([each.weight for each in found], 1), np.concatenate([each.bias for each in found])
    return _Linear(found[0].x, weight, bias, found[0].channels_first)


def _one_source(value: ir.Value) -> _Linear | None:
    conv = producer(value, "Conv")
    if conv is not None:
        return _from_conv(conv)
    transpose = producer(value, "Transpose")
    linear = None if transpose is None or permutation(transpose) != TO_NCHW else linear_layer_of(transpose.inputs[0])
    if linear is None:
        return None
    matmul, bias = linear
    weight = np.asarray(constant(matmul.inputs[1]), np.float64)
    offset = np.zeros(weight.shape[1]) if bias is None else np.asarray(constant(bias), np.float64).reshape(-1)
    x = matmul.inputs[0]
    return None if x is None else _Linear(x, weight, np.broadcast_to(offset, weight.shape[1:]), channels_first=False)


def _from_conv(conv: ir.Node) -> _Linear | None:
    weight, x = constant(conv.inputs[1]), conv.inputs[0]
    if weight is None or x is None or weight.shape[2:] != (1, 1) or attribute(conv, "group", 1) != 1:
        return None
    if any(attribute(conv, "pads", ())) or set(attribute(conv, "strides", (1,))) != {1}:
        return None
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    return _Linear(x, weight[:, :, 0, 0].T.astype(np.float64), offset, channels_first=True)


def _apply(build: Builder, source: _Linear, weight: Array, bias: Array, like: ir.Value) -> ir.Value:
    dtype = np.float64 if like.dtype == ir.DataType.DOUBLE else np.float32
    offset = build.constant("composed.bias", bias.astype(dtype))
    if source.channels_first:
        kernel = build.constant("composed.weight", weight.T[:, :, None, None].astype(dtype))
        return build.value("Conv", [source.x, kernel, offset], attributes={"kernel_shape": (1, 1)}, like=like)
    shape = None if like.shape is None else [like.shape[axis] for axis in (0, 2, 3, 1)]
    product = build.value(
        "MatMul", [source.x, build.constant("composed.weight", weight.astype(dtype))], like=like, shape=shape
    )
    total = build.value("Add", [product, offset], like=like, shape=shape)
    return build.value("Transpose", [total], attributes={"perm": TO_NCHW}, like=like)

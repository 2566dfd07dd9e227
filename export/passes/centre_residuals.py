# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of a residual stream -> division by its root mean square; who writes the stream leaves the mean out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, constant
from .base import Pass
from .norms import subtract_mean, write_out
from .streams import streams


@dataclass(frozen=True)
class CentreResiduals(Pass):
    """A LayerNorm does not see the mean over the channels of what it reads. Where norms are all that reads a residual
    stream, each layer that writes to it can leave the mean out: its weights and bias, less their own mean over the
    outputs, sum to a stream without one, and the norm is x / sqrt(mean(x^2) + eps).

    A stream that starts with something else than a layer, such as the norm of a patch embedding, has its mean
    subtracted there, once. Only for streams of channels-first maps: two of a written-out norm's five passes over
    the map less, and no transposes around it. Over the last axis a norm is one fused kernel either way.
    Source of the identity: SliceGPT (Ashkboos et al. 2024), section 3.1.
    """

    def rewrite(self, model: ir.Model) -> int:
        found = [each for each in streams(model.graph) if each.has_channels_first_sums() and each.enough_norms()]
        for stream in found:
            for value in stream.layers:
                _centre_layer(value.producer())
            for value in stream.starts:
                _subtract_mean(value, stream.axis_of[value])
        norms = [norm for stream in found for norm in stream.norms]
        for norm in norms:  # after all streams: a norm may be what another stream starts with
            write_out(norm, centred=True, turned=True)
        return len(norms)


def _centre_layer(node: ir.Node | None) -> None:
    if node is None:
        raise ValueError("a layer without a node")
    if node.op_type == "Add":
        layer = 0 if constant(node.inputs[1]) is not None else 1
        _centre_input(node, 1 - layer, -1)
        made = node.inputs[layer]
        _centre_layer(None if made is None else made.producer())
    elif node.op_type == "MatMul":
        _centre_input(node, 1, -1)
    else:
        _centre_input(node, 1, 0)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _centre_input(node, 2, 0)


def _centre_input(node: ir.Node, index: int, axis: int) -> None:
    old = node.inputs[index]
    weight = constant(old)
    if old is None or weight is None:
        raise ValueError(f"{node.name} has no constant input {index}")
    wide = weight.astype(np.float64)
    centred = (wide - wide.mean(axis, keepdims=True)).astype(weight.dtype)
    node.replace_input_with(index, Builder(node).constant(f"{old.name}.centred", centred))


def _subtract_mean(value: ir.Value, axis: int) -> None:
    uses = list(value.uses())
    readers = {use.node for use in uses}
    first = next(node for node in uses[0].node.graph or () if node in readers)
    centred = subtract_mean(Builder(first), value, axis)
    for use in uses:
        use.node.replace_input_with(use.idx, centred)

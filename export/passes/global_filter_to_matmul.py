# SPDX-License-Identifier: Apache-2.0
"""metaformer::GlobalFilter -> matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, attribute, constant, replace
from ..ops.global_filter.op import OP_ID, OP_TYPE
from ..ops.global_filter.portable import expand_dense, expand_separable
from .base import Pass
from .resize_spectral_filters import fits


@dataclass(frozen=True)
class GlobalFilterToMatmul(Pass):
    """rfft2 * filter, irfft2 of a fixed H x W as matrix products: no runtime has a DFT that is as fast
    at these sizes (ONNX Runtime's takes 200 times as long). Afterwards no GlobalFilter is left.
    """

    separable_above: int = 1024  # tokens (H * W); measured: dense wins up to 32x32 at batch 8

    def requires(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_identifier() == OP_ID and not fits(node):
                return f"{node.name} needs a constant weight of its map's size"
        return None

    def rewrite(self, model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.op_identifier() == OP_ID]
        for node in nodes:
            x, weight = node.inputs[0], constant(node.inputs[1])
            if x is None or weight is None:
                raise ValueError(f"{node.name} has no input")
            tokens = attribute(node, "height") * attribute(node, "width")
            expand = expand_separable if tokens > self.separable_above else expand_dense
            replace(node.outputs[0], expand(Builder(node, mixer_op=OP_TYPE), x, weight))
        return len(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = sum(node.op_identifier() == OP_ID for node in graph)
        return f"{left} GlobalFilter nodes are left" if left else None

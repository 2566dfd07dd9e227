# SPDX-License-Identifier: Apache-2.0
"""LayerNormalization -> the same in primitives."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import producer
from .base import Pass
from .norms import Norm, find_norm, write_out


@dataclass(frozen=True)
class WriteOutLayerNorm(Pass):
    """OpenVINO runs LayerNormalization of a 16-bit file between conversions from and to float32, and in slow reorders;
    of the primitives it makes one kernel itself, which sums in float32. Factor and offset can go into the next layer.
    """

    channels_first: bool = False
    """Only norms of (B, C, H, W) maps, and those over axis 1, without the transposes around them: convolutions in eight
    bits are on both sides, which have channels last in memory and first in the graph, and OpenVINO copies for each
    transpose in between."""

    def rewrite(self, model: ir.Model) -> int:
        norms = [norm for node in model.graph if (norm := find_norm(node)) is not None and self._concerns(norm)]
        for norm in norms:
            write_out(norm, centred=False, turned=self.channels_first)
        return len(norms)

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_type == "LayerNormalization" and (norm := find_norm(node)) is not None and self._concerns(norm):
                return f"{node.name} is still one node"
        return None

    def _concerns(self, norm: Norm) -> bool:
        if not self.channels_first:
            return norm.last.op_type == "LayerNormalization"
        return len(norm.x.shape or ()) == 4 and (norm.axis == 1 or producer(norm.x, "Transpose") is not None)

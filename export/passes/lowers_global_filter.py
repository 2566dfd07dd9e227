# SPDX-License-Identifier: Apache-2.0
"""What the passes that write metaformer::GlobalFilter in standard operators have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder, constant, replace
from ..ops.global_filter.op import OP_ID, OP_TYPE
from .base import Pass
from .resize_spectral_filters import fits


@dataclass(frozen=True)
class LowersGlobalFilter(Pass):
    """Puts what `expand` builds in the place of every GlobalFilter. Afterwards no GlobalFilter is left."""

    @abstractmethod
    def expand(self, build: Builder, x: ir.Value, weight: NDArray[Any]) -> ir.Value:
        """The filtered map of x (B, C, H, W), of its shape; weight is (C, H, W // 2 + 1, 2)."""

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
            replace(node.outputs[0], self.expand(Builder(node, mixer_op=OP_TYPE), x, weight))
        return len(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = sum(node.op_identifier() == OP_ID for node in graph)
        return f"{left} GlobalFilter nodes are left" if left else None

# SPDX-License-Identifier: Apache-2.0
"""Give every GlobalFilter a weight of the size of its feature map, once, at build time."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, attribute, constant
from ..ops.global_filter.op import OP_ID, resize_filter
from .base import Pass


@dataclass(frozen=True)
class ResizeSpectralFilters(Pass):
    """Afterwards every GlobalFilter's weight is an initializer of shape (C, height, width // 2 + 1, 2)."""

    def rewrite(self, model: ir.Model) -> int:
        rewrites = 0
        for node in list(model.graph):
            if node.op_identifier() != OP_ID or fits(node):
                continue
            weight = constant(node.inputs[1])
            if weight is None:
                continue
            height, columns = _target(node)
            resized = resize_filter(weight, height, columns).astype(weight.dtype)
            name = f"{node.inputs[1].name}.{height}x{columns}" if node.inputs[1] is not None else "weight"
            node.replace_input_with(1, Builder(node).constant(name, resized))
            rewrites += 1
        return rewrites

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_identifier() == OP_ID and not fits(node):
                return f"{node.name} has no constant weight of its map's size"
        return None


def fits(node: ir.Node) -> bool:
    """Whether a GlobalFilter's weight is constant and of its map's size."""
    weight = constant(node.inputs[1])
    return weight is not None and weight.shape[1:3] == _target(node)


def _target(node: ir.Node) -> tuple[int, int]:
    return attribute(node, "height"), attribute(node, "width") // 2 + 1

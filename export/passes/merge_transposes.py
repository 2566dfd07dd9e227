# SPDX-License-Identifier: Apache-2.0
"""Transpose after Transpose -> one, or none."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, permutation, producer, replace
from .base import Pass


@dataclass(frozen=True)
class MergeTransposes(Pass):
    """Afterwards no Transpose reads another, and none is the identity."""

    def rewrite(self, model: ir.Model) -> int:
        return sum(_merge(node) for node in list(model.graph) if node.op_type == "Transpose")

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_type == "Transpose" and producer(node.inputs[0], "Transpose") is not None:
                return f"{node.name} reads another Transpose"
        return None


def _merge(node: ir.Node) -> bool:
    x, perm = node.inputs[0], list(permutation(node))
    before = producer(x, "Transpose")
    if before is not None:
        x, perm = before.inputs[0], [permutation(before)[axis] for axis in perm]
    if x is None or not perm or (before is None and perm != sorted(perm)):
        return False
    output = node.outputs[0]
    if perm != sorted(perm):
        x = Builder(node).value("Transpose", [x], attributes={"perm": perm}, like=output)
    replace(output, x)
    return True

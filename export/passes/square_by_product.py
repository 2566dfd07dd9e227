# SPDX-License-Identifier: Apache-2.0
"""x^2 -> x * x."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, constant, replace
from .base import Pass


@dataclass(frozen=True)
class SquareByProduct(Pass):
    """ONNX Runtime multiplies in its blocked layout but leaves it for a Pow. Afterwards no Pow squares."""

    def rewrite(self, model: ir.Model) -> int:
        found = [node for node in model.graph if _squares(node)]
        for node in found:
            result = node.outputs[0]
            replace(result, Builder(node).value("Mul", [node.inputs[0], node.inputs[0]], like=result))
        return len(found)

    def ensures(self, graph: ir.Graph) -> str | None:
        return next((f"{node.name} squares by Pow" for node in graph if _squares(node)), None)


def _squares(node: ir.Node) -> bool:
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" and node.domain == "" else None
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2

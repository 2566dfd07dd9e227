# SPDX-License-Identifier: Apache-2.0
"""x * a * b with constants a and b -> x * (a * b)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, computed_and_constant, constant, only_use, replace
from .base import Pass


@dataclass(frozen=True)
class MergeFactors(Pass):
    """Afterwards no product with a constant is read by another alone. The product of the two is rounded once."""

    def rewrite(self, model: ir.Model) -> int:
        return sum(_merge(node) for node in list(model.graph) if node.op_type == "Mul" and node.domain == "")

    def ensures(self, graph: ir.Graph) -> str | None:
        return next((f"{node.name} multiplies a product" for node in graph if _factors(node) is not None), None)


def _factors(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    product, second = computed_and_constant(node, "Mul")
    x, first = computed_and_constant(None if product is None else product.producer(), "Mul")
    if x is None or first is None or second is None or product is None or not only_use(product):
        return None
    return x, first, second


def _merge(node: ir.Node) -> bool:
    found = _factors(node)
    if found is None:
        return False
    x, first, second = found
    numbers = [np.asarray(constant(each)) for each in (first, second)]
    merged = numbers[0].astype(np.float64) * numbers[1].astype(np.float64)
    factor = Builder(node).constant(f"{second.name}.merged", merged.astype(numbers[0].dtype))
    replace(node.outputs[0], Builder(node).value("Mul", [x, factor], like=node.outputs[0]))
    return True

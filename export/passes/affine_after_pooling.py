# SPDX-License-Identifier: Apache-2.0
"""pool(g * z + b) - (g * z + b) -> g * (pool(z) - z)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, attribute, computed_and_constant, constant, only_use, producer, replace
from .base import Pass, no_match


@dataclass(frozen=True)
class AffineAfterPooling(Pass):
    """The affine part of PoolFormer's norm moves behind its token mixer, where the offset cancels and the
    factor joins the layer scale.

    A mean of the neighbours that exist leaves a constant as it is, so the offset is in both terms. Two
    passes over the map less for every block.
    """

    def rewrite(self, model: ir.Model) -> int:
        return sum(_move(node) for node in list(model.graph) if node.op_type == "Sub" and node.domain == "")


def _move(difference: ir.Node) -> bool:
    pooled, affine = difference.inputs
    pooling = producer(pooled, "AveragePool")
    if pooling is None or affine is None or pooling.inputs[0] is not affine or len(affine.uses()) != 2:
        return False
    if attribute(pooling, "count_include_pad", 0) or affine.is_graph_output():
        no_match("the pooling counts its padding", difference)
        return False
    product, offset = computed_and_constant(affine.producer(), "Add")
    x, factor = computed_and_constant(None if product is None else product.producer(), "Mul")
    if x is None or product is None or not only_use(product) or x.shape != affine.shape:
        no_match("the map is not x * factor + offset", difference)
        return False
    if not all(_per_channel(each, affine) for each in (factor, offset)):
        no_match("factor and offset are not one number for each channel", difference)
        return False
    build, result = Builder(difference), difference.outputs[0]
    mean = build.value("AveragePool", [x], attributes=dict(pooling.attributes), like=result)
    replace(result, build.value("Mul", [build.value("Sub", [mean, x], like=result), factor], like=result))
    return True


def _per_channel(value: ir.Value | None, x: ir.Value) -> bool:
    array = constant(value)
    if array is None or x.shape is None or len(x.shape) != 4:
        return False
    return array.size == 1 or (array.ndim >= 3 and array.shape[-3:] == (x.shape[1], 1, 1) and array.size == x.shape[1])

# SPDX-License-Identifier: Apache-2.0
"""Reshape(y, Shape(x)) -> Reshape(y, numbers)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from ..graph import Builder, attribute, producer, replace, size
from .base import Pass, no_match


@dataclass(frozen=True)
class StaticReshapes(Pass):
    """Only the batch is dynamic, and a 0 copies it: no shape is computed at run time, and later passes see it.

    GroupNorm is exported in this way.
    """

    def rewrite(self, model: ir.Model) -> int:
        rewrites = sum(_fix(node) for node in list(model.graph) if node.op_type == "Reshape" and node.domain == "")
        if rewrites:
            common.ShapeInferencePass()(model)  # what comes after has its shape from here
        return rewrites


def _fix(reshape: ir.Node) -> bool:
    y, result = reshape.inputs[0], reshape.outputs[0]
    taken = producer(reshape.inputs[1], "Shape")
    if taken is None or attribute(taken, "start", 0) or "end" in taken.attributes:
        return False
    x = taken.inputs[0]
    if x is None or y is None or x.shape is None or y.shape is None or len(x.shape) == 0:
        return False
    batch, *sizes = x.shape
    if y.shape[0] != batch or not all(isinstance(length, int) for length in sizes):
        no_match("more than the batch is dynamic", reshape)
        return False
    build = Builder(reshape)
    shape = build.ints(f"{reshape.name}.shape", 0, *(size(x, axis) for axis in range(1, len(x.shape))))
    result.type = y.type
    replace(result, build.value("Reshape", [y, shape], like=x))
    return True

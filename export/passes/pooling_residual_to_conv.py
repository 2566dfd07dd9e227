# SPDX-License-Identifier: Apache-2.0
"""x + c * (pool(z) - z) -> the same with depthwise 1x1 convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, computed_and_constant, constant, float_type, only_use, producer, replace
from .base import Pass, no_match


@dataclass(frozen=True)
class PoolingResidualToConv(Pass):
    """PoolFormer's token mixer and its residual sum, in the layout of the convolutions around them.

    ONNX Runtime adds and pools in its blocked layout, but leaves it to subtract or to multiply by one
    number for each channel; as depthwise convolutions both stay in it, and take the sums in.
    """

    def rewrite(self, model: ir.Model) -> int:
        return sum(_convert(node) for node in list(model.graph) if node.op_type == "Add" and node.domain == "")


def _convert(add: ir.Node) -> bool:
    for x, scaled in (tuple(add.inputs), tuple(reversed(add.inputs))):
        if scaled is None or not only_use(scaled):
            continue
        difference, factor = computed_and_constant(scaled.producer(), "Mul")
        minus = producer(difference, "Sub")
        pooled, z = (None, None) if minus is None else minus.inputs
        pooling, numbers = producer(pooled, "AveragePool"), constant(factor)
        if pooling is None or pooling.inputs[0] is not z or numbers is None or x is None or difference is None:
            continue
        if not only_use(difference) or z is None or z.shape is None or numbers.size != z.shape[1]:
            no_match("the factor is not one number for each channel", add)
            continue
        build = Builder(add)
        negative = build.value("Conv", [z, _weight(build, -np.ones(numbers.size, float_type(z)), "minus")], **_like(z))
        centred = build.value("Add", [pooled, negative], like=z)
        weighted = build.value("Conv", [centred, _weight(build, numbers, "factor")], **_like(z))
        replace(add.outputs[0], build.value("Add", [x, weighted], like=z))
        return True
    return False


def _weight(build: Builder, numbers: np.ndarray, name: str) -> ir.Value:
    return build.constant(f"{name}.conv", numbers.reshape(-1, 1, 1, 1))


def _like(z: ir.Value) -> dict[str, object]:
    channels = z.shape[1] if z.shape is not None else 0
    return {"attributes": {"kernel_shape": (1, 1), "group": channels}, "like": z}

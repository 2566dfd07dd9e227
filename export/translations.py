# SPDX-License-Identifier: Apache-2.0
"""Translations to ONNX of operators that torch's exporter would first decompose, which traces the model twice more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from onnxscript import FLOAT
from onnxscript.onnx_opset import opset18 as op


def batch_norm(
    x: FLOAT,
    weight: FLOAT,
    bias: FLOAT,
    mean: FLOAT,
    variance: FLOAT,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> FLOAT:
    """aten::batch_norm with weight and bias and outside of training: ONNX's BatchNormalization."""
    # One output outside of training, whatever the stub says.
    return op.BatchNormalization(x, weight, bias, mean, variance, epsilon=eps)  # type: ignore[return-value]


TRANSLATIONS: Mapping[Callable[..., object], Callable[..., object]] = {torch.ops.aten.batch_norm.default: batch_norm}

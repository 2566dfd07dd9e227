# SPDX-License-Identifier: Apache-2.0
"""Traced -> Lowered: run the passes of one form and check what comes out."""

from __future__ import annotations

import onnx

from ..artifacts import Lowered, Traced
from ..errors import LoweringError
from .ops.mixer_op import DOMAIN
from .passes.base import run_pass
from .passes.catalog import FORMS


def lower(traced: Traced, form: str) -> Lowered:
    """Rewrite a traced model into "portable", "openvino" or "plugin" form; the traced model is left as it is.

    Raises:
        LoweringError: a pass broke its promise, or the result is not a valid ONNX model.
    """
    model = traced.model.clone()
    records = tuple(run_pass(each, model) for each in FORMS[form])
    if form != "plugin" and (left := {node.op_type for node in model.graph if node.domain == DOMAIN}):
        raise LoweringError(f"no {form} form for {', '.join(sorted(left))}")
    return Lowered(traced.spec, model, form, records)


def check(proto: onnx.ModelProto) -> None:
    """onnx.checker's full check and strict shape inference; LoweringError says what is wrong."""
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"the exported graph is not valid ONNX: {error}") from error

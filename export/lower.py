# SPDX-License-Identifier: Apache-2.0
"""Traced -> Lowered: run the passes of one form and check what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from ..artifacts import Lowered, LoweringForm, PassRecord, Traced
from ..errors import LoweringError
from .collector import paused
from .ops.mixer_op import DOMAIN
from .passes.base import Pass, run_pass
from .passes.catalog import FORMS, plugin_form


def lower(traced: Traced, form: str) -> Lowered:
    """Rewrite a traced model into one of the forms of the catalogue; the traced model is left as it is.

    Raises:
        LoweringError: a pass broke its promise, or the result is not a valid ONNX model.
    """
    return lower_all(traced, (form,))[0]


def lower_all(
    traced: Traced, forms: Sequence[str], lowering: Mapping[str, LoweringForm] | None = None
) -> tuple[Lowered, ...]:
    """Likewise into several forms, which share the passes that they begin with and the weights that those make.

    Args:
        lowering: mixer ops that are no plugins in the plugin form.
    """
    passes = {**FORMS, "plugin": plugin_form(lowering or {})}
    with paused():
        rewritten = _rewritten(traced.model.clone(), {form: passes[form] for form in forms}, ())
        # Copies: a graph that went through shape inference remembers the weights that it had then, as inputs.
        made = {form: (model.clone(), records) for form, (model, records) in rewritten}
    for form, (model, _) in made.items():
        if form != "plugin" and (left := {node.op_type for node in model.graph if node.domain == DOMAIN}):
            raise LoweringError(f"no {form} form for {', '.join(sorted(left))}")
    return tuple(Lowered(traced.spec, made[form][0], form, made[form][1]) for form in forms)


def _rewritten(
    model: ir.Model, forms: Mapping[str, Sequence[Pass]], records: tuple[PassRecord, ...]
) -> Iterator[tuple[str, tuple[ir.Model, tuple[PassRecord, ...]]]]:
    """Every form with its graph and what was done; forms that go on with the same pass have one graph till then."""
    groups: dict[Pass | None, dict[str, Sequence[Pass]]] = {}
    for form, passes in forms.items():
        groups.setdefault(passes[0] if passes else None, {})[form] = passes
    for left, (first, group) in zip(reversed(range(len(groups))), groups.items(), strict=True):
        branch = model.clone() if left else model
        if first is None:
            yield from ((form, (branch, records)) for form in group)
            continue
        done = (*records, run_pass(first, branch))
        yield from _rewritten(branch, {form: passes[1:] for form, passes in group.items()}, done)


def check(proto: onnx.ModelProto) -> None:
    """onnx.checker's full check and strict shape inference; LoweringError says what is wrong."""
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"the exported graph is not valid ONNX: {error}") from error

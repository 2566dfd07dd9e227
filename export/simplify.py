# SPDX-License-Identifier: Apache-2.0
"""What torch's exporter writes -> the graph that the passes read: constants folded, detours of its translation gone."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, RewriteRule
from onnxscript.rewriter.onnx_fusions import fuse
from onnxscript.rewriter.rules import common as rules

OF_SHAPES = (
    rules.dropout_zero_rule,
    rules.dropout_inference_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
)
OF_NUMBERS = (
    *rules.mul_by_1_rule.commute(),
    *rules.add_0_rule.commute(),
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_gemm_rule,
)
"""onnxscript's default rules, less those for what no family writes, and less `slice_split_rule`: to find its pairs of
Slices it goes through the whole graph again for every node (half of a deep BOAT-CSWin's tracing), and finds none here.
The second may read parameters and buffers.
"""

_ROUNDS = 2
"""As in onnxscript's own optimizer: a rewrite may make constants that can be folded."""


def simplify_shapes(model: ir.Model) -> None:
    """Infer the shapes of all values, and simplify in place what parameters and buffers have no part in.

    What is left holds for every block of a kind, whatever its weights.
    """
    common.InlinePass()(model)
    weights = {value: value.const_value for value in model.graph.initializers.values()}
    for value in weights:
        value.const_value = None
    _rewrite(model, (*OF_NUMBERS, *OF_SHAPES), infer=True)
    for value, tensor in weights.items():
        value.const_value = tensor


def simplify(model: ir.Model) -> None:
    """Rewrite what `simplify_shapes` left, in place, so that it is as torch's exporter would optimize it, in linear
    time.
    """
    # All values have shapes: inferring them takes three times as long as the folding itself.
    if _rewrite(model, OF_NUMBERS, infer=False):
        _rewrite(model, (*OF_NUMBERS, *OF_SHAPES), infer=True)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)
    fuse(model)


def _rewrite(model: ir.Model, wanted: Sequence[RewriteRule], *, infer: bool) -> bool:
    """Whether a rule found something."""
    found = False
    for _ in range(_ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=infer)
        rewritten = RewritePass(wanted)(model).modified
        common.RemoveUnusedNodesPass()(model)
        if not rewritten:  # folding goes through the whole graph in order: another time it finds no more
            break
        found = True
    return found

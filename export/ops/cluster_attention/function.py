# SPDX-License-Identifier: Apache-2.0
"""ClusterAttention as an ONNX function, so that a runtime without the plugin can still run the node."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

_BODY = """
<domain: "metaformer", opset_import: ["": {opset}]>
ClusterAttention <cluster_size, overlap, scale> (q, k, v, order) => (y)
{{
    zeros = Constant <value_ints: ints = [0]> ()
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    threes = Constant <value_ints: ints = [3]> ()
    twos = Constant <value_ints: ints = [2]> ()
    last = Constant <value_ints: ints = [-1]> ()
    cluster = Constant <value_int: int = @cluster_size> ()
    size = Unsqueeze (cluster, zeros)
    borrowed = Constant <value_int: int = @overlap> ()
    lent = Unsqueeze (borrowed, zeros)
    factor_float = Constant <value_float: float = @scale> ()
    factor = CastLike (factor_float, q)
    scaled = Mul (q, factor)
    shape = Shape (q)
    batch_heads = Shape <start: int = 0, end: int = 2> (q)
    n_tokens = Shape <start: int = 2, end: int = 3> (q)
    dim = Shape <start: int = 3, end: int = 4> (q)
    single = Equal (n_tokens, size)
    is_single = Squeeze (single)

    y = If (is_single) <
        then_branch: graph = whole () => (y_whole)
        {{
            turned = Transpose <perm: ints = [0, 1, 3, 2]> (k)
            logits = MatMul (scaled, turned)
            weights = Softmax <axis: int = -1> (logits)
            y_whole = MatMul (weights, v)
        }},
        else_branch: graph = clusters () => (y_clusters)
        {{
            pair = Mul (size, twos)
            pairs = Div (n_tokens, pair)
            pair_shape = Concat <axis: int = 0> (batch_heads, pairs, pair, dim)
            rows = Unsqueeze (order, last)
            q_rows = GatherND <batch_dims: int = 2> (scaled, rows)
            k_rows = GatherND <batch_dims: int = 2> (k, rows)
            v_rows = GatherND <batch_dims: int = 2> (v, rows)
            q_pairs = Reshape (q_rows, pair_shape)
            k_pairs = Reshape (k_rows, pair_shape)
            v_pairs = Reshape (v_rows, pair_shape)
            reach = Add (size, lent)
            begin = Sub (size, lent)
            q_first = Slice (q_pairs, zeros, size, threes)
            k_first = Slice (k_pairs, zeros, reach, threes)
            v_first = Slice (v_pairs, zeros, reach, threes)
            k_first_turned = Transpose <perm: ints = [0, 1, 2, 4, 3]> (k_first)
            logits_first = MatMul (q_first, k_first_turned)
            weights_first = Softmax <axis: int = -1> (logits_first)
            y_first = MatMul (weights_first, v_first)
            q_second = Slice (q_pairs, size, pair, threes)
            k_second = Slice (k_pairs, begin, pair, threes)
            v_second = Slice (v_pairs, begin, pair, threes)
            k_second_turned = Transpose <perm: ints = [0, 1, 2, 4, 3]> (k_second)
            logits_second = MatMul (q_second, k_second_turned)
            weights_second = Softmax <axis: int = -1> (logits_second)
            y_second = MatMul (weights_second, v_second)
            y_pairs = Concat <axis: int = 3> (y_first, y_second)
            y_rows = Reshape (y_pairs, shape)
            order_shape = Shape (order)
            n_scalar = Squeeze (n_tokens)
            row = Range (zero, n_scalar, one)
            positions = Expand (row, order_shape)
            inverse = ScatterElements <axis: int = 2> (order, order, positions)
            inverse_rows = Unsqueeze (inverse, last)
            y_clusters = GatherND <batch_dims: int = 2> (y_rows, inverse_rows)
        }}
    >
}}
"""


def function(opset: int) -> ir.Function:
    """The body for a model of that opset."""
    return ir.serde.deserialize_function(onnx.parser.parse_function(_BODY.format(opset=opset)))

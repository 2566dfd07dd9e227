# SPDX-License-Identifier: Apache-2.0
"""BalancedClustering as an ONNX function, so that a runtime without the plugin can still run the node.

One body serves every length: a Loop over the levels, with the number of groups as its state.
"""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

_BODY = """
<domain: "metaformer", opset_import: ["": {opset}]>
BalancedClustering <cluster_size, levels> (q) => (order)
{{
    tokens = Cast <to: int = 1> (q)
    shape = Shape (tokens)
    batch_heads = Shape <start: int = 0, end: int = 2> (tokens)
    row_shape = Shape <start: int = 0, end: int = 3> (tokens)
    n_tokens = Shape <start: int = 2, end: int = 3> (tokens)
    dim = Shape <start: int = 3, end: int = 4> (tokens)
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    ones = Constant <value_ints: ints = [1]> ()
    twos = Constant <value_ints: ints = [2]> ()
    threes = Constant <value_ints: ints = [3]> ()
    four = Constant <value_ints: ints = [4]> ()
    last = Constant <value_ints: ints = [-1]> ()
    tiny = Constant <value_float: float = 1e-12> ()
    least = Constant <value_float: float = 1e-7> ()
    unit = Constant <value_float: float = 1.0> ()
    sharpness = Constant <value_floats: floats = [100.0, -100.0]> ()
    column = Constant <value_ints: ints = [2, 1]> ()
    signs = Reshape (sharpness, column)

    n_scalar = Squeeze (n_tokens)
    row = Range (zero, n_scalar, one)
    start = Expand (row, row_shape)
    trips = Constant <value_int: int = @levels> ()
    go_on = Cast <to: int = 9> (one)
    order, final_groups = Loop (trips, go_on, start, ones) <
        body: graph = split (int64 level, bool go, order_in, groups) => (go_out, order_out, groups_out)
    {{
        go_out = Identity (go)
        groups_out = Mul (groups, twos)
        group_tokens = Div (n_tokens, groups)
        half_tokens = Div (group_tokens, twos)
        rows = Unsqueeze (order_in, last)
        picked = GatherND <batch_dims: int = 2> (tokens, rows)
        grouped_shape = Concat <axis: int = 0> (batch_heads, groups, group_tokens, dim)
        grouped = Reshape (picked, grouped_shape)
        norm = ReduceL2 <keepdims: int = 1> (grouped, last)
        length = Max (norm, tiny)
        direction = Div (grouped, length)
        turned = Transpose <perm: ints = [0, 1, 2, 4, 3]> (direction)

        halves_shape = Concat <axis: int = 0> (batch_heads, groups, twos, half_tokens, dim)
        halves = Reshape (grouped, halves_shape)
        mean_0 = ReduceMean <keepdims: int = 0> (halves, four)
        norm_0 = ReduceL2 <keepdims: int = 1> (mean_0, last)
        length_0 = Max (norm_0, tiny)
        centroid_0 = Div (mean_0, length_0)

        cosine_0 = MatMul (centroid_0, turned)
        first_0, second_0 = Split <axis: int = 3, num_outputs: int = 2> (cosine_0)
        difference_0 = Sub (first_0, second_0)
        sharp_0 = Mul (difference_0, signs)
        share_0 = Sigmoid (sharp_0)
        sum_1 = MatMul (share_0, grouped)
        norm_1 = ReduceL2 <keepdims: int = 1> (sum_1, last)
        length_1 = Max (norm_1, tiny)
        centroid_1 = Div (sum_1, length_1)

        cosine_1 = MatMul (centroid_1, turned)
        first_1, second_1 = Split <axis: int = 3, num_outputs: int = 2> (cosine_1)
        difference_1 = Sub (first_1, second_1)
        sharp_1 = Mul (difference_1, signs)
        share_1 = Sigmoid (sharp_1)
        sum_2 = MatMul (share_1, grouped)
        norm_2 = ReduceL2 <keepdims: int = 1> (sum_2, last)
        length_2 = Max (norm_2, tiny)
        centroid_2 = Div (sum_2, length_2)

        cosine_2 = MatMul (centroid_2, turned)
        similar = Add (cosine_2, unit)
        first_2, second_2 = Split <axis: int = 3, num_outputs: int = 2> (similar)
        divisor = Max (second_2, least)
        ratio = Div (first_2, divisor)
        flat_ratio = Squeeze (ratio, threes)
        sorted, sorting = TopK <axis: int = -1, largest: int = 0, sorted: int = 1> (flat_ratio, group_tokens)
        order_shape = Concat <axis: int = 0> (batch_heads, groups, group_tokens)
        grouped_order = Reshape (order_in, order_shape)
        next_order = GatherElements <axis: int = 3> (grouped_order, sorting)
        order_out = Reshape (next_order, row_shape)
    }}>
}}
"""


def function(opset: int) -> ir.Function:
    """The body for a model of that opset."""
    return ir.serde.deserialize_function(onnx.parser.parse_function(_BODY.format(opset=opset)))

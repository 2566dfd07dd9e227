# SPDX-License-Identifier: Apache-2.0
"""LocalAttention as an ONNX function, so that a runtime without the plugin can still run the node.

One body serves every map: it cuts the windows out of the padded keys and values with indices it makes.
"""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

_BODY = """
<domain: "metaformer", opset_import: ["": {opset}]>
LocalAttention <heads, window, stride, scale> (q, k, v) => (y)
{{
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    zeros = Constant <value_ints: ints = [0]> ()
    last = Constant <value_ints: ints = [-1]> ()
    first = Constant <value_ints: ints = [0]> ()
    two = Constant <value_int: int = 2> ()
    map_axes = Constant <value_ints: ints = [2, 3]> ()
    from_start = Constant <value_ints: ints = [0, 0]> ()
    to_end = Constant <value_ints: ints = [1000000, 1000000]> ()
    side = Constant <value_int: int = @window> ()
    step = Constant <value_int: int = @stride> ()
    head_count = Constant <value_int: int = @heads> ()
    steps = Unsqueeze (step, zeros)
    sides = Unsqueeze (side, zeros)
    head = Unsqueeze (head_count, zeros)
    factor_float = Constant <value_float: float = @scale> ()
    factor = CastLike (factor_float, q)

    both_steps = Concat <axis: int = 0> (steps, steps)
    taken = Slice (q, from_start, to_end, map_axes, both_steps)
    scaled = Mul (taken, factor)
    batch = Shape <start: int = 0, end: int = 1> (taken)
    channels = Shape <start: int = 1, end: int = 2> (taken)
    rows = Shape <start: int = 2, end: int = 3> (taken)
    columns = Shape <start: int = 3, end: int = 4> (taken)
    dim = Div (channels, head)
    positions = Mul (rows, columns)
    area = Mul (sides, sides)

    margin_scalar = Div (side, two)
    margin = Unsqueeze (margin_scalar, zeros)
    borders = Concat <axis: int = 0> (zeros, zeros, margin, margin, zeros, zeros, margin, margin)
    k_padded = Pad <mode: string = "reflect"> (k, borders)
    v_padded = Pad <mode: string = "reflect"> (v, borders)
    offset = Range (zero, side, one)
    offset_down = Unsqueeze (offset, last)
    row_end = Squeeze (rows)
    row = Range (zero, row_end, one)
    row_start = Mul (row, step)
    row_across = Unsqueeze (row_start, first)
    row_index = Add (offset_down, row_across)
    column_end = Squeeze (columns)
    column = Range (zero, column_end, one)
    column_start = Mul (column, step)
    column_across = Unsqueeze (column_start, first)
    column_index = Add (offset_down, column_across)
    k_rows = Gather <axis: int = 2> (k_padded, row_index)
    k_cut = Gather <axis: int = 4> (k_rows, column_index)
    v_rows = Gather <axis: int = 2> (v_padded, row_index)
    v_cut = Gather <axis: int = 4> (v_rows, column_index)
    cut_shape = Concat <axis: int = 0> (batch, head, dim, sides, rows, sides, columns)
    k_heads = Reshape (k_cut, cut_shape)
    v_heads = Reshape (v_cut, cut_shape)
    k_turned = Transpose <perm: ints = [0, 1, 4, 6, 2, 3, 5]> (k_heads)
    v_turned = Transpose <perm: ints = [0, 1, 4, 6, 3, 5, 2]> (v_heads)
    k_shape = Concat <axis: int = 0> (batch, head, positions, dim, area)
    v_shape = Concat <axis: int = 0> (batch, head, positions, area, dim)
    k_windows = Reshape (k_turned, k_shape)
    v_windows = Reshape (v_turned, v_shape)
    three = Constant <value_ints: ints = [3]> ()
    q_shape = Concat <axis: int = 0> (batch, head, dim, positions)
    q_heads = Reshape (scaled, q_shape)
    q_turned = Transpose <perm: ints = [0, 1, 3, 2]> (q_heads)
    q_queries = Unsqueeze (q_turned, three)
    logits = MatMul (q_queries, k_windows)
    weights = Softmax <axis: int = -1> (logits)
    mixed = MatMul (weights, v_windows)
    mixed_rows = Squeeze (mixed, three)
    mixed_turned = Transpose <perm: ints = [0, 1, 3, 2]> (mixed_rows)
    y_shape = Concat <axis: int = 0> (batch, channels, rows, columns)
    y = Reshape (mixed_turned, y_shape)
}}
"""


def function(opset: int) -> ir.Function:
    """The body for a model of that opset."""
    return ir.serde.deserialize_function(onnx.parser.parse_function(_BODY.format(opset=opset)))

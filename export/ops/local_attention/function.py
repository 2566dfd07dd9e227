# SPDX-License-Identifier: Apache-2.0
"""LocalAttention as an ONNX function, so that a runtime without the plugin can still run the node.

One body serves every map: it makes the indices of the pixels of every window, and takes these pixels, all channels of a
head at once, from the padded keys and values.
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
    width = Shape <start: int = 3, end: int = 4> (k_padded)
    offset = Range (zero, side, one)
    row_end = Squeeze (rows)
    row = Range (zero, row_end, one)
    row_first = Mul (row, step)
    row_down = Unsqueeze (row_first, last)
    row_index = Add (row_down, offset)
    row_start = Mul (row_index, width)
    row_axes = Constant <value_ints: ints = [1, 3]> ()
    row_across = Unsqueeze (row_start, row_axes)
    column_end = Squeeze (columns)
    column = Range (zero, column_end, one)
    column_first = Mul (column, step)
    column_down = Unsqueeze (column_first, last)
    column_index = Add (column_down, offset)
    column_axes = Constant <value_ints: ints = [0, 2]> ()
    column_across = Unsqueeze (column_index, column_axes)
    pixels = Add (row_across, column_across)
    window_shape = Concat <axis: int = 0> (positions, area)
    windows = Reshape (pixels, window_shape)

    map_shape = Concat <axis: int = 0> (batch, head, dim, last)
    k_heads = Reshape (k_padded, map_shape)
    v_heads = Reshape (v_padded, map_shape)
    k_pixels = Transpose <perm: ints = [0, 1, 3, 2]> (k_heads)
    v_pixels = Transpose <perm: ints = [0, 1, 3, 2]> (v_heads)
    k_windows = Gather <axis: int = 2> (k_pixels, windows)
    v_windows = Gather <axis: int = 2> (v_pixels, windows)
    q_heads = Reshape (scaled, map_shape)
    q_pixels = Transpose <perm: ints = [0, 1, 3, 2]> (q_heads)
    q_queries = Unsqueeze (q_pixels, last)
    logits = MatMul (k_windows, q_queries)
    logit_rows = Squeeze (logits, last)
    weight_rows = Softmax <axis: int = -1> (logit_rows)
    before_last = Constant <value_ints: ints = [-2]> ()
    weights = Unsqueeze (weight_rows, before_last)
    mixed = MatMul (weights, v_windows)
    mixed_rows = Squeeze (mixed, before_last)
    mixed_turned = Transpose <perm: ints = [0, 1, 3, 2]> (mixed_rows)
    y_shape = Concat <axis: int = 0> (batch, channels, rows, columns)
    y = Reshape (mixed_turned, y_shape)
}}
"""


def function(opset: int) -> ir.Function:
    """The body for a model of that opset."""
    return ir.serde.deserialize_function(onnx.parser.parse_function(_BODY.format(opset=opset)))

# SPDX-License-Identifier: Apache-2.0
"""GlobalFilter as an ONNX function, so that a runtime without the plugin can still run the node.

One body serves every map size: it makes its cosine and sine matrices from the node's height and
width attributes, which a runtime folds into constants when it inlines the function. The weight must
have the map's size already.
"""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

_BODY = """
<domain: "metaformer", opset_import: ["": {opset}]>
GlobalFilter <height, width> (x, weight) => (y)
{{
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    h = Constant <value_int: int = @height> ()
    w = Constant <value_int: int = @width> ()
    half_w = Div (w, two)
    frequencies = Add (half_w, one)
    tau = Constant <value_float: float = 6.283185307179586> ()
    last = Constant <value_ints: ints = [-1]> ()
    first = Constant <value_ints: ints = [0]> ()

    row = Range (zero, h, one)
    row_down = Unsqueeze (row, last)
    row_across = Unsqueeze (row, first)
    row_phase = Mul (row_down, row_across)
    row_phase_mod = Mod (row_phase, h)
    row_phase_float = Cast <to: int = 1> (row_phase_mod)
    h_float = Cast <to: int = 1> (h)
    row_step = Div (tau, h_float)
    row_angle = Mul (row_phase_float, row_step)
    row_cos = Cos (row_angle)
    row_sin = Sin (row_angle)

    column = Range (zero, w, one)
    frequency = Range (zero, frequencies, one)
    column_down = Unsqueeze (column, last)
    frequency_across = Unsqueeze (frequency, first)
    column_phase = Mul (column_down, frequency_across)
    column_phase_mod = Mod (column_phase, w)
    column_phase_float = Cast <to: int = 1> (column_phase_mod)
    w_float = Cast <to: int = 1> (w)
    column_step = Div (tau, w_float)
    column_angle = Mul (column_phase_float, column_step)
    column_cos = Cos (column_angle)
    column_sin = Sin (column_angle)

    x_float = Cast <to: int = 1> (x)
    weight_float = Cast <to: int = 1> (weight)
    weight_real = Gather <axis: int = 3> (weight_float, zero)
    weight_imag = Gather <axis: int = 3> (weight_float, one)

    a = MatMul (x_float, column_cos)
    minus_b = MatMul (x_float, column_sin)
    b = Neg (minus_b)
    cos_a = MatMul (row_cos, a)
    sin_b = MatMul (row_sin, b)
    cos_b = MatMul (row_cos, b)
    sin_a = MatMul (row_sin, a)
    real = Add (cos_a, sin_b)
    imag = Sub (cos_b, sin_a)

    real_real = Mul (real, weight_real)
    imag_imag = Mul (imag, weight_imag)
    real_imag = Mul (real, weight_imag)
    imag_real = Mul (imag, weight_real)
    p = Sub (real_real, imag_imag)
    q = Add (real_imag, imag_real)

    cos_p = MatMul (row_cos, p)
    sin_q = MatMul (row_sin, q)
    cos_q = MatMul (row_cos, q)
    sin_p = MatMul (row_sin, p)
    back_real = Sub (cos_p, sin_q)
    back_imag = Add (cos_q, sin_p)

    is_dc = Equal (frequency, zero)
    doubled = Mul (frequency, two)
    is_nyquist = Equal (doubled, w)
    is_single = Or (is_dc, is_nyquist)
    once = Constant <value_float: float = 1.0> ()
    twice = Constant <value_float: float = 2.0> ()
    pairs = Where (is_single, once, twice)
    real_paired = Mul (back_real, pairs)
    imag_paired = Mul (back_imag, pairs)
    cos_back = Transpose <perm: ints = [1, 0]> (column_cos)
    sin_back = Transpose <perm: ints = [1, 0]> (column_sin)
    from_real = MatMul (real_paired, cos_back)
    from_imag = MatMul (imag_paired, sin_back)
    unscaled = Sub (from_real, from_imag)
    tokens = Mul (h_float, w_float)
    scaled = Div (unscaled, tokens)
    y = CastLike (scaled, x)
}}
"""


def function(opset: int) -> ir.Function:
    """The body for a model of that opset."""
    return ir.serde.deserialize_function(onnx.parser.parse_function(_BODY.format(opset=opset)))

# SPDX-License-Identifier: Apache-2.0
"""GlobalFilter in the operator that ONNX has for it, DFT, for a runtime with a good one.

Complex transforms of both axes and back: ONNX has the onesided inverse in its latest opsets only. TensorRT's
parser transforms the axis before the last, which holds real and imaginary part, so the map is turned between its
two axes. A DFT does not scale and its inverse divides by the length: that is 1 / (H W) in all, as of the
operator's orthonormal transforms, so that no factor is left over.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph import Builder
from .portable import map_size, multiply

_AXIS = -2
"""Of every transform, of (B, C, ..., points, real and imaginary part)."""
_AXIS_IS_INPUT = 20
"""The opset from which on the axis of a DFT is an input; before, it is an attribute."""
_TURNED = (0, 1, 3, 2, 4)


def expand_dft(build: Builder, x: ir.Value, weight: NDArray[np.floating]) -> ir.Value:
    """DFT of rows and columns, the filter, and back, in float32. weight: (C, H, W // 2 + 1, 2).

    Returns:
        A value of x's shape and type, (B, C, H, W).
    """
    channels, height, width = map_size(x)
    real = _cast(build, x, ir.DataType.FLOAT)
    shape = [*(x.shape or ())[:1], channels, height, width, 1]
    signal = build.value("Unsqueeze", [real, build.ints("last_axis", -1)], like=real, shape=shape)
    spectrum = _transform(build, _turn(build, _transform(build, signal)))  # (B, C, W, H, 2)
    whole = whole_spectrum(weight, width).transpose(0, 2, 1, 3)
    filtered = multiply(build, *_parts(build, spectrum), whole[..., None, :])
    rows = _turn(build, _transform(build, filtered, inverse=True))
    back = _transform(build, rows, inverse=True)
    first = build.constant("real_part", np.array(0, np.int64))
    result = build.value("Gather", [back, first], attributes={"axis": -1}, like=real)
    return _cast(build, result, x.dtype or ir.DataType.FLOAT)


def whole_spectrum(weight: NDArray[np.floating], width: int) -> NDArray[np.floating]:
    """(C, H, W // 2 + 1, 2) -> (C, H, W, 2): the frequency (-u, -v) gets the conjugate of the weight of (u, v).

    Columns 0 and, of an even width, W / 2 hold their own mirror and stay as they are: what of them is not Hermitian
    makes an imaginary part in the map, which irfft2 leaves out as well.
    """
    columns = width - np.arange(width // 2 + 1, width)
    rows = -np.arange(weight.shape[1]) % weight.shape[1]
    mirror = weight[:, rows][:, :, columns] * np.array([1, -1], weight.dtype)
    return np.concatenate([weight, mirror], axis=2)


def _transform(build: Builder, x: ir.Value, *, inverse: bool = False) -> ir.Value:
    """(..., n, 1 or 2) -> (..., n, 2): the DFT of n points."""
    inputs: list[ir.Value | None] = [x]
    attributes = {"inverse": int(inverse), "onesided": 0}
    if build.graph.opset_imports[""] < _AXIS_IS_INPUT:
        attributes["axis"] = _AXIS
    else:
        inputs += [None, build.constant("dft_axis", np.array(_AXIS, np.int64))]
    return build.value("DFT", inputs, attributes=attributes, like=x, shape=[*(x.shape or ())[:-1], 2])


def _turn(build: Builder, x: ir.Value) -> ir.Value:
    """(B, C, a, b, 2) -> (B, C, b, a, 2)."""
    shape = [(x.shape or ())[axis] for axis in _TURNED]
    return build.value("Transpose", [x], attributes={"perm": _TURNED}, like=x, shape=shape)


def _parts(build: Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(..., 2) -> real and imaginary part, (..., 1) each."""
    shape = [*(x.shape or ())[:-1], 1]
    split = build.node("Split", [x, build.ints("parts", 1, 1)], {"axis": -1}, like=x, shape=shape, outputs=2)
    real, imaginary = split.outputs
    return real, imaginary


def _cast(build: Builder, x: ir.Value, to: ir.DataType) -> ir.Value:
    if x.dtype in (None, to):
        return x
    cast = build.value("Cast", [x], attributes={"to": int(to)})
    cast.type, cast.shape = ir.TensorType(to), x.shape
    return cast

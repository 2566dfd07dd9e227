# SPDX-License-Identifier: Apache-2.0
"""GlobalFilter in standard operators: the transforms of a fixed size are products with constant matrices.

rfft2 is linear, so for a fixed H x W it is one (H*W, K) matrix for the real part and one for the
imaginary part, K = H * (W // 2 + 1), and irfft2 is their counterpart with the doubled weight of the
frequencies that stand for a conjugate pair. Large maps go row by row and column by column instead,
which needs O(H + W) rather than O(H * W) products per value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph import Builder

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """Cosines and sines of a DFT of length n, orthonormal: (n, frequencies), float64."""

    cos: Matrix
    sin: Matrix

    @classmethod
    def full(cls, n: int) -> Axis:
        """All n frequencies."""
        return cls._of(n, n)

    @classmethod
    def half(cls, n: int) -> Axis:
        """The n // 2 + 1 frequencies of a real transform."""
        return cls._of(n, n // 2 + 1)

    @classmethod
    def _of(cls, n: int, frequencies: int) -> Axis:
        # The phase is reduced modulo n in integers, so that large maps lose no accuracy.
        phase = 2 * np.pi * (np.outer(np.arange(n), np.arange(frequencies)) % n) / n
        return cls(np.cos(phase) / np.sqrt(n), np.sin(phase) / np.sqrt(n))


def conjugate_weight(width: int) -> Matrix:
    """How often each of the width // 2 + 1 frequencies counts in irfft: 2, but 1 for DC and Nyquist."""
    frequency = np.arange(width // 2 + 1)
    weight: Matrix = np.where((frequency == 0) | (2 * frequency == width), 1.0, 2.0)
    return weight


def dense_matrices(height: int, width: int) -> tuple[Matrix, Matrix, Matrix]:
    """(forward real, forward imaginary, inverse) of a real 2-D DFT, rows flattened.

    Shapes (H*W, K), (H*W, K) and (2*K, H*W); the inverse takes [real | imaginary].
    """
    rows, columns = Axis.full(height), Axis.half(width)
    k = height * (width // 2 + 1)

    def outer(a: Matrix, b: Matrix) -> Matrix:
        product: Matrix = np.einsum("yu,xv->yxuv", a, b).reshape(height * width, k)
        return product

    real = outer(rows.cos, columns.cos) - outer(rows.sin, columns.sin)
    imaginary = -(outer(rows.cos, columns.sin) + outer(rows.sin, columns.cos))
    pairs = np.tile(conjugate_weight(width), height)
    return real, imaginary, np.concatenate([(real * pairs).T, (imaginary * pairs).T])


def expand_dense(build: Builder, x: ir.Value, weight: NDArray[np.floating]) -> ir.Value:
    """Two products for the transform, the filter, one product back. weight: (C, H, W // 2 + 1, 2)."""
    channels, height, width = map_size(x)
    real, imaginary, inverse = dense_matrices(height, width)
    k = real.shape[1]
    flat = _reshape(build, x, [channels, height * width])
    size = f"{height}x{width}"
    real_part, imaginary_part = [
        build.value("MatMul", [flat, _const(build, f"dft{size}.{part}", matrix)], like=x, shape=[*_head(flat), k])
        for part, matrix in (("real", real), ("imag", imaginary))
    ]
    filtered = multiply(build, real_part, imaginary_part, weight.reshape(channels, k, 2))
    back = build.value("MatMul", [filtered, _const(build, f"dft{size}.inverse", inverse)], like=flat)
    return _reshape(build, back, [channels, height, width])


def expand_separable(build: Builder, x: ir.Value, weight: NDArray[np.floating]) -> ir.Value:
    """Rows, then columns, the filter, columns, then rows. weight: (C, H, W // 2 + 1, 2)."""
    channels, height, width = map_size(x)
    half = width // 2 + 1
    row, column = Axis.half(width), Axis.full(height)
    pairs = conjugate_weight(width)
    name = f"dft{height}x{width}"

    # (B, C, H, W) -> (B, C, H, [re | im] of W/2+1) -> (B, C, W/2+1, [re | im] of H)
    along_rows = build.value(
        "MatMul",
        [x, _const(build, f"{name}.rows", np.hstack([row.cos, -row.sin]))],
        like=x,
        shape=[*_head(x), height, 2 * half],
    )
    turned = _turn(build, along_rows, channels, (height, 2, half), (0, 1, 4, 3, 2))
    # (a + ib)(c - is) = (ac + bs) + i(bc - as), summed over H.
    forward = (np.vstack([column.cos, column.sin]), np.vstack([-column.sin, column.cos]))
    real_part, imaginary_part = [
        build.value(
            "MatMul",
            [turned, _const(build, f"{name}.columns.{part}", matrix)],
            like=x,
            shape=[*_head(turned), half, height],
        )
        for part, matrix in zip(("real", "imag"), forward, strict=True)
    ]
    filtered = multiply(build, real_part, imaginary_part, weight.transpose(0, 2, 1, 3))
    # (a + ib)(c + is) = (ac - bs) + i(as + bc), summed over the frequencies of H.
    backward = np.block([[column.cos.T, column.sin.T], [-column.sin.T, column.cos.T]])
    columns_back = build.value("MatMul", [filtered, _const(build, f"{name}.columns.inverse", backward)], like=turned)
    turned_back = _turn(build, columns_back, channels, (half, 2, height), (0, 1, 4, 3, 2))
    inverse = np.vstack([(row.cos * pairs).T, -(row.sin * pairs).T])
    return build.value("MatMul", [turned_back, _const(build, f"{name}.rows.inverse", inverse)], like=x)


def multiply(build: Builder, real: ir.Value, imaginary: ir.Value, weight: NDArray[np.floating]) -> ir.Value:
    """(re + i im) * weight -> [re | im] along the last axis. weight: (..., 2), broadcasts to re."""
    w_real, w_imaginary = (_const(build, f"filter.{part}", weight[..., i]) for i, part in enumerate(("real", "imag")))

    def product(a: ir.Value, b: ir.Value) -> ir.Value:
        return build.value("Mul", [a, b], like=real)

    parts = [
        build.value("Sub", [product(real, w_real), product(imaginary, w_imaginary)], like=real),
        build.value("Add", [product(real, w_imaginary), product(imaginary, w_real)], like=real),
    ]
    shape = list(real.shape or ())
    return build.value("Concat", parts, attributes={"axis": -1}, like=real, shape=[*shape[:-1], 2 * shape[-1]])


def _turn(build: Builder, x: ir.Value, channels: int, split: tuple[int, int, int], perm: tuple[int, ...]) -> ir.Value:
    """(B, C, a, 2*b) -> (B, C, b, 2*a): the pair of parts stays outside the axis that becomes last."""
    a, two, b = split
    parts = _reshape(build, x, [channels, a, two, b])
    turned = build.value(
        "Transpose", [parts], attributes={"perm": perm}, like=x, shape=[_batch(x), channels, b, two, a]
    )
    return _reshape(build, turned, [channels, b, two * a])


def _reshape(build: Builder, x: ir.Value, shape: list[int]) -> ir.Value:
    """Reshape all axes but the batch, which is copied."""
    target = build.constant("shape", np.array([0, *shape], np.int64))
    return build.value("Reshape", [x, target], like=x, shape=[_batch(x), *shape])


def _const(build: Builder, name: str, array: NDArray[np.floating]) -> ir.Value:
    return build.constant(name, array.astype(np.float32))


def map_size(x: ir.Value) -> tuple[int, int, int]:
    """Channels, height and width of a map (B, C, H, W); ValueError where one is not static."""
    channels, height, width = list(x.shape or ())[1:]
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        raise ValueError("GlobalFilter needs static channels, height and width")
    return channels, height, width


def _batch(x: ir.Value) -> int | ir.SymbolicDim:
    return (x.shape or [ir.SymbolicDim(None)])[0]


def _head(x: ir.Value) -> list[int | ir.SymbolicDim]:
    """Batch and channels."""
    return list(x.shape or ())[:2]

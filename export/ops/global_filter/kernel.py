# SPDX-License-Identifier: Apache-2.0
"""GlobalFilter in the Triton language: rfft2, the spectral filter and irfft2 in one pass over memory.

A program takes one channel of some images. Both transforms are small matrix products, an axis at a time:

    x (h, w) @ (w, 2 f), cosines and sines in turn       -> a, b (f, h): the frequencies of every row
    (a + i b) @ (cos - i sin) (h, u)                     -> the spectrum (f, u), times the filter
    (p + i q) @ (cos + i sin) (u, h)                     -> the frequencies of every row, filtered
    those, in turn (h, 2 f) @ (2 f, w)                   -> y (h, w)

x is read once and y written once; the filter of a channel and the four matrices, made of cosines and
sines, are made once for all images of the program. Orthonormal: 1 / (h w) goes into the filter.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _phases(m, n, period: tl.constexpr):
    """cos and sin of 2 pi m n / period, for integers."""
    angle = ((m * n) % period).to(tl.float32) * (6.283185307179586 / period)
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def _between_rows(height: tl.constexpr, H: tl.constexpr):
    """(H, H) cosines and sines of row times frequency."""
    row = tl.arange(0, H)[:, None]
    frequency = tl.arange(0, H)[None, :]
    cos, sin = _phases(row, frequency, height)
    inside = (row < height) & (frequency < height)
    return tl.where(inside, cos, 0.0), tl.where(inside, sin, 0.0)


@triton.jit
def _into_columns(width: tl.constexpr, W: tl.constexpr, F: tl.constexpr):
    """(W, 2 F): a real row of w values to its frequencies 0 to w // 2, as pairs."""
    column = tl.arange(0, W)[:, None]
    pair = tl.arange(0, 2 * F)[None, :]
    cos, sin = _phases(column, pair // 2, width)
    matrix = tl.where((pair % 2) == 0, cos, -sin)
    return tl.where((column < width) & (pair // 2 <= width // 2), matrix, 0.0)


@triton.jit
def _from_columns(width: tl.constexpr, W: tl.constexpr, F: tl.constexpr):
    """(2 F, W): frequencies back to a real row; those that stand for two, themselves and their mirror, count twice."""
    pair = tl.arange(0, 2 * F)[:, None]
    column = tl.arange(0, W)[None, :]
    frequency = pair // 2
    cos, sin = _phases(column, frequency, width)
    times = tl.where((frequency == 0) | (2 * frequency == width), 1.0, 2.0)
    matrix = times * tl.where((pair % 2) == 0, cos, -sin)
    return tl.where((column < width) & (frequency <= width // 2), matrix, 0.0)


@triton.jit
def _sum_of_products(one, left, other, right, PRECISION: tl.constexpr):
    product = tl.dot(one, left, input_precision=PRECISION)
    return tl.dot(other, right, acc=product, input_precision=PRECISION)


@triton.jit
def _filtered(a, b, real, imaginary, IMAGES: tl.constexpr, F: tl.constexpr, H: tl.constexpr):
    """(IMAGES * F, H) times the filter (F, H), complex."""
    a = tl.reshape(a, (IMAGES, F, H))
    b = tl.reshape(b, (IMAGES, F, H))
    p = a * real[None] - b * imaginary[None]
    q = a * imaginary[None] + b * real[None]
    return tl.reshape(p, (IMAGES * F, H)), tl.reshape(q, (IMAGES * F, H))


@triton.jit
def global_filter(
    x_ptr,
    weight_ptr,
    batch,
    y_ptr,
    channels: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    F: tl.constexpr,
    IMAGES: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """One channel of IMAGES * ROUNDS images, IMAGES at a time.

    x, y: (batch, channels, height, width); weight: (channels, height, width // 2 + 1, 2) float32.
    H, W, F: blocks for rows, columns and frequencies: powers of two; H, W, 2 F and IMAGES * F at least 16.
    """
    # Products of float32 in three steps of TF32: 1e-6 of it. TF32 itself rounds as float16 does.
    PRECISION: tl.constexpr = "tf32x3" if x_ptr.dtype.element_ty == tl.float32 else "tf32"
    channel = tl.program_id(1)
    frequencies: tl.constexpr = width // 2 + 1
    into = _into_columns(width, W, F)
    back = _from_columns(width, W, F)
    cos, sin = _between_rows(height, H)

    f = tl.arange(0, F)[:, None]
    u = tl.arange(0, H)[None, :]
    inside = (f < frequencies) & (u < height)
    weights = weight_ptr + ((channel * height + u) * frequencies + f) * 2
    scale = 1.0 / (height * width)
    real = tl.load(weights, mask=inside, other=0.0) * scale
    imaginary = tl.load(weights + 1, mask=inside, other=0.0) * scale

    image = tl.arange(0, IMAGES)[:, None, None]
    row = tl.arange(0, H)[None, :, None]
    column = tl.arange(0, W)[None, None, :]
    for each in range(ROUNDS):
        number = (tl.program_id(0) * ROUNDS + each) * IMAGES + image
        mask = (number < batch) & (row < height) & (column < width)
        offset = ((number * channels + channel).to(tl.int64) * height + row) * width + column
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        pairs = tl.dot(tl.reshape(x, (IMAGES * H, W)), into, input_precision=PRECISION)
        pairs = tl.permute(tl.reshape(pairs, (IMAGES, H, F, 2)), (0, 2, 1, 3))
        a, b = tl.split(tl.reshape(pairs, (IMAGES * F, H, 2)))
        spectrum_real = _sum_of_products(a, cos, b, sin, PRECISION)
        spectrum_imaginary = _sum_of_products(b, cos, -a, sin, PRECISION)
        p, q = _filtered(spectrum_real, spectrum_imaginary, real, imaginary, IMAGES, F, H)
        a = _sum_of_products(p, cos, -q, sin, PRECISION)
        b = _sum_of_products(q, cos, p, sin, PRECISION)
        pairs = tl.permute(tl.reshape(tl.join(a, b), (IMAGES, F, H, 2)), (0, 2, 1, 3))
        y = tl.dot(tl.reshape(pairs, (IMAGES * H, 2 * F)), back, input_precision=PRECISION)
        tl.store(y_ptr + offset, tl.reshape(y, (IMAGES, H, W)).to(y_ptr.dtype.element_ty), mask=mask)

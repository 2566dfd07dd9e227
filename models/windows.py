# SPDX-License-Identifier: Apache-2.0
"""Cutting a map of tokens into windows, and putting it together again."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_windows(x: Tensor, height: int, width: int, heads: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, heads, height * width, C / heads): windows and tokens row by row.

    The map divides into windows. One transposition, so that queries, keys and values are copied once each.
    """
    _, rows, columns, channels = x.shape
    x = x.reshape(-1, rows // height, height, columns // width, width, heads, channels // heads)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(
        -1, (rows // height) * (columns // width), heads, height * width, channels // heads
    )


def from_windows(x: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    """(B, windows, heads, height * width, C / heads) -> (B, rows, columns, C): the inverse of `to_windows`."""
    heads, dim = x.shape[2], x.shape[4]
    x = x.reshape(-1, rows // height, columns // width, heads, height, width, dim)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, rows, columns, heads * dim)


def to_images(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, C, height, width): every window an image of its own."""
    _, rows, columns, channels = x.shape
    x = x.reshape(-1, rows // height, height, columns // width, width, channels)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(-1, channels, height, width)


def from_images(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B * windows, C, height, width) -> (B, rows, columns, C): the inverse of `to_images`."""
    channels, height, width = x.shape[1:]
    x = x.reshape(-1, rows // height, columns // width, channels, height, width)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(-1, rows, columns, channels)


@cache
def window_order(
    rows: int, columns: int, heads: int, windows: tuple[tuple[int, int], ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How the vectors of each token and head of a map, (rows * columns * heads), are put into windows, and back.

    Both are (rows * columns * heads) int64, the second the inverse of the first: the vectors of each window, of each
    head in it, of each token of it, row by row.

    Args:
        windows: height and width of a window for each equal part of the heads, whose windows follow one another.
    """
    index = np.arange(rows * columns * heads)
    own = heads // len(windows)
    order = np.concatenate(
        [
            index.reshape(rows // height, height, columns // width, width, heads)[..., i * own : (i + 1) * own]
            .transpose(0, 2, 4, 1, 3)
            .ravel()
            for i, (height, width) in enumerate(windows)
        ]
    )
    return order, np.argsort(order)


def window_order_like(x: Tensor, heads: int, windows: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """`window_order` of a map x (B, rows, columns, C), on its device."""
    order, back = (torch.from_numpy(each) for each in window_order(*x.shape[1:3], heads, windows))
    return (order, back) if x.device.type == "cpu" else (order.to(x.device), back.to(x.device))


@cache
def shift_mask(rows: int, columns: int, window: int, shift: int) -> NDArray[np.float32]:
    """(windows, window^2, window^2): -100 between tokens that only the cyclic shift made neighbours, else 0.

    Source: Swin Transformer (Liu et al. 2021), section 3.2, "cyclic-shifting".
    """
    region = 3 * _regions(rows, window, shift)[:, None] + _regions(columns, window, shift)[None, :]
    cut = region.reshape(rows // window, window, columns // window, window).swapaxes(1, 2)
    tokens = cut.reshape(-1, window * window)
    return np.where(tokens[:, :, None] == tokens[:, None, :], np.float32(0), np.float32(-100))


def _regions(length: int, window: int, shift: int) -> NDArray[np.int64]:
    """Which of the three pieces that a shift makes each row or column belongs to."""
    position = np.arange(length)
    return (position >= length - window).astype(np.int64) + (position >= length - shift)


def shift_mask_like(x: Tensor, rows: int, columns: int, window: int, shift: int) -> Tensor:
    """`shift_mask` on x's device, in its dtype."""
    mask = torch.from_numpy(shift_mask(rows, columns, window, shift))
    same = (mask.dtype, mask.device) == (x.dtype, x.device)
    return mask if same else mask.to(x)  # a conversion to what it is would still be traced

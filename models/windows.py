# SPDX-License-Identifier: Apache-2.0
"""Cutting a map of tokens into windows, and putting it together again."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_windows(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, height * width, C), row by row; the map divides into windows."""
    _, rows, columns, channels = x.shape
    x = x.reshape(-1, rows // height, height, columns // width, width, channels)
    return x.transpose(2, 3).reshape(-1, (rows // height) * (columns // width), height * width, channels)


def from_windows(x: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    """(B, windows, height * width, C) -> (B, rows, columns, C): the inverse of `to_windows`."""
    channels = x.shape[-1]
    x = x.reshape(-1, rows // height, columns // width, height, width, channels)
    return x.transpose(2, 3).reshape(-1, rows, columns, channels)


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

# SPDX-License-Identifier: Apache-2.0
"""Window attention with relative position bias."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..windows import from_windows, shift_mask_like, to_windows


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows of a map.

    (B, H, W, dim) -> (B, H, W, dim), H and W multiples of the window. `shift` says by how much the
    map was shifted; tokens that are neighbours only because of that do not see each other.

    Source: Swin Transformer (Liu et al. 2021), sections 3.2 and 3.3.
    """

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self._index = torch.from_numpy(relative_position_index(window))  # an array would be wrapped anew in each call

    def forward(self, x: Tensor, shift: int = 0) -> Tensor:
        out: Tensor = self.proj(self.attend(self.qkv(x), shift))
        return out

    def attend(self, qkv: Tensor, shift: int) -> Tensor:
        """Attention of a map of queries, keys and values: (B, H, W, 3 * dim) -> (B, H, W, dim)."""
        rows, columns, dim = qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
        q, k, v = (to_windows(each, self.window, self.window, self.heads) for each in qkv.chunk(3, -1))
        logits = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1) + self.bias()
        if shift:
            logits = logits + shift_mask_like(logits, rows, columns, self.window, shift)[:, None]
        return from_windows(logits.softmax(-1) @ v, self.window, self.window, rows, columns)

    def bias(self) -> Tensor:
        """(heads, window^2, window^2), added to the logits."""
        tokens = self.window * self.window
        picked = self.relative_position_bias_table[self._index]
        return picked.reshape(tokens, tokens, self.heads).permute(2, 0, 1)


def relative_position_index(window: int) -> NDArray[np.int64]:
    """(window^4,): for every pair of tokens, query first, the row of the table for query minus key."""
    y, x = np.divmod(np.arange(window * window), window)
    down, across = y[:, None] - y[None, :], x[:, None] - x[None, :]
    index: NDArray[np.int64] = ((down + window - 1) * (2 * window - 1) + across + window - 1).reshape(-1)
    return index

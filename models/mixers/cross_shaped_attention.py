# SPDX-License-Identifier: Apache-2.0
"""One branch of cross-shaped window attention: stripes across the whole map."""

from __future__ import annotations

from torch import Tensor, nn

from ..windows import from_windows, to_windows


class StripeAttention(nn.Module):
    """Multi-head attention inside stripes, plus a depthwise 3x3 of the values inside each stripe (LePE).

    (B, H, W, 3, dim) of queries, keys and values -> (B, H, W, dim).

    Args:
        height, width: of a stripe in tokens; None is the whole map's.

    Source: CSWin Transformer (Dong et al. 2022), sections 3.2 and 3.3.
    """

    def __init__(self, dim: int, heads: int, height: int | None, width: int | None) -> None:
        super().__init__()
        self.heads, self.height, self.width = heads, height, width
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, qkv: Tensor) -> Tensor:
        rows, columns, _, dim = qkv.shape[1:]
        height, width = self.height or rows, self.width or columns
        windows = to_windows(qkv.flatten(-2), height, width)
        count, tokens = windows.shape[1:3]
        values = windows[..., 2 * dim :].reshape(-1, height, width, dim).permute(0, 3, 1, 2)
        local = self.get_v(values).permute(0, 2, 3, 1).reshape(-1, count, tokens, dim)
        heads = windows.reshape(-1, count, tokens, 3, self.heads, dim // self.heads)
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5).unbind(0)
        weights = ((q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        mixed = (weights @ v).transpose(2, 3).reshape(-1, count, tokens, dim) + local
        return from_windows(mixed, height, width, rows, columns)

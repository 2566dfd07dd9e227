# SPDX-License-Identifier: Apache-2.0
"""One branch of cross-shaped window attention: stripes across the whole map."""

from __future__ import annotations

from torch import Tensor, nn

from ..windows import from_images, from_windows, to_images, to_windows


class StripeAttention(nn.Module):
    """Multi-head attention inside stripes, plus a depthwise 3x3 of the values inside each stripe (LePE).

    Queries, keys and values, each (B, H, W, dim) -> (B, H, W, dim).

    Args:
        height, width: of a stripe in tokens; None is the whole map's.

    Source: CSWin Transformer (Dong et al. 2022), sections 3.2 and 3.3.
    """

    def __init__(self, dim: int, heads: int, height: int | None, width: int | None) -> None:
        super().__init__()
        self.heads, self.height, self.width = heads, height, width
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, columns, dim = q.shape[1:]
        height, width = self.height or rows, self.width or columns
        local = from_images(self.get_v(to_images(v, height, width)), rows, columns)
        q, k, v = (to_windows(each, height, width, self.heads) for each in (q, k, v))
        weights = ((q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        return from_windows(weights @ v, height, width, rows, columns) + local

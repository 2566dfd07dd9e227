# SPDX-License-Identifier: Apache-2.0
"""Cross-shaped window attention: stripes across the whole map, upright for half of the heads, level for the others."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..windows import from_images, to_images, window_order_like


class LocalEnhancement(nn.Module):
    """A depthwise 3x3 of the values inside each window: (B, H, W, dim) -> (B, H, W, dim).

    Args:
        height, width: of a window in tokens; None is the whole map's.

    Source: CSWin Transformer (Dong et al. 2022), section 3.3, "locally-enhanced positional encoding".
    """

    def __init__(self, dim: int, height: int | None, width: int | None) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def window(self, rows: int, columns: int) -> tuple[int, int]:
        """Height and width of a window of a map."""
        return self.height or rows, self.width or columns

    def forward(self, v: Tensor) -> Tensor:
        rows, columns = v.shape[1:3]
        return from_images(self.get_v(to_images(v, *self.window(rows, columns))), rows, columns)


class CrossShapedAttention(nn.ModuleList):
    """Multi-head attention inside stripes, plus a depthwise convolution of the values inside each stripe.

    Queries, keys and values, each (B, H, W, dim) -> (B, H, W, dim), H = W. The windows of all heads are attended to at
    once: both halves of the heads have as many, of as many tokens.

    Args:
        stripe: width of the stripes in tokens; None makes the whole map one window of all heads.

    Source: CSWin Transformer (Dong et al. 2022), sections 3.2 and 3.3.
    """

    def __init__(self, dim: int, heads: int, stripe: int | None) -> None:
        if stripe is None:
            super().__init__([LocalEnhancement(dim, None, None)])
        else:
            super().__init__([LocalEnhancement(dim // 2, None, stripe), LocalEnhancement(dim // 2, stripe, None)])
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, columns, dim = q.shape[1:]
        head = dim // self.heads
        branches = cast("list[LocalEnhancement]", list(self))
        values = v.chunk(2, -1) if len(branches) == 2 else (v,)  # a chunk of one part would be decomposed to be traced
        local = torch.cat([branch(part) for branch, part in zip(branches, values, strict=True)], -1)
        windows = tuple(branch.window(rows, columns) for branch in branches)
        order, back = window_order_like(q, self.heads, windows)
        vectors, own = rows * columns * self.heads, self.heads // len(branches)
        tokens = windows[0][0] * windows[0][1]
        cut = (-1, vectors // (own * tokens), own, tokens, head)
        q, k, v = (
            each.reshape(-1, vectors, head).index_select(1, order).reshape(cut) for each in (q * head**-0.5, k, v)
        )
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return mixed.reshape(-1, vectors, head).index_select(1, back).reshape(-1, rows, columns, dim) + local

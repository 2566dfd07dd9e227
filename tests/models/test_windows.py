# SPDX-License-Identifier: Apache-2.0
"""Windows by rows of vectors are those that cutting a map makes; each half of the heads attends in its own stripes."""

from __future__ import annotations

import numpy as np
import pytest
import support
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer_export.models.mixers.cross_shaped_attention import CrossShapedAttention
from metaformer_export.models.windows import from_windows, to_windows, window_order

WINDOWS = [((6, 2), (2, 6)), ((2, 3),), ((6, 6),), ((6, 1), (1, 6))]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_vectors_in_order_are_the_windows_of_their_heads(windows: tuple[tuple[int, int], ...]) -> None:
    side, heads, head = 6, 4, 5
    x = torch.from_numpy(support.image(2, side, side, heads * head))
    order, back = window_order(side, side, heads, windows)
    vectors = x.reshape(2, -1, head)
    got = vectors[:, order].numpy()
    own = heads // len(windows)
    parts = x.split(own * head, -1)
    want = [to_windows(part, *window, own).reshape(2, -1, head) for part, window in zip(parts, windows, strict=True)]
    assert np.array_equal(got, torch.cat(want, 1).numpy())
    assert np.array_equal(got[:, back], vectors.numpy())


@pytest.mark.parametrize("stripe", [1, 2, 3, None])
def test_halves_of_the_heads_attend_in_stripes_of_their_own(stripe: int | None) -> None:
    side, heads, dim = 6, 4, 32
    attention = support.fill_golden(CrossShapedAttention(dim, heads, stripe))
    q, k, v = torch.randn(3, 2, side, side, dim, generator=torch.Generator().manual_seed(0))
    windows = [(side, side)] if stripe is None else [(side, stripe), (stripe, side)]
    parts = zip(*(each.chunk(len(windows), -1) for each in (q, k, v)), strict=True)
    want = [
        attended(*part, *window, heads // len(windows)) + enhanced(part[2], branch.get_v, *window)
        for part, window, branch in zip(parts, windows, attention, strict=True)
    ]
    assert support.relative_error(attention(q, k, v).numpy(), torch.cat(want, -1).numpy()) <= 1e-5


def attended(q: Tensor, k: Tensor, v: Tensor, height: int, width: int, heads: int) -> Tensor:
    """Attention inside the windows of a map (B, H, W, C)."""
    cut = [to_windows(each, height, width, heads) for each in (q, k, v)]
    return from_windows(F.scaled_dot_product_attention(*cut), height, width, *q.shape[1:3])


def enhanced(v: Tensor, conv: nn.Module, height: int, width: int) -> Tensor:
    """A convolution of each window, one after the other."""
    out = torch.empty_like(v)
    for top in range(0, v.shape[1], height):
        for left in range(0, v.shape[2], width):
            window = (slice(None), slice(top, top + height), slice(left, left + width))
            out[window] = conv(v[window].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return out

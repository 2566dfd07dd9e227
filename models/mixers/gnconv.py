# SPDX-License-Identifier: Apache-2.0
"""Recursive gated convolution (gnConv)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .global_filter import GlobalLocalFilter


class RecursiveGatedConv(nn.Module):
    """gnConv of order n: a gate of each order is multiplied onto the projection of the one before.

    (B, dim, H, W) -> (B, dim, H, W). Channels per order: dim / 2^(n-1), ..., dim / 2, dim.

    Args:
        dim: channels; a multiple of 2^(order - 1).
        order: number of gated products.
        scale: factor on the depthwise output (1/3 in HorNet's backbone).
        filter_size: (h, w) of the spectral weight of a global-local filter that takes the place
            of the depthwise 7x7; None for the 7x7.

    Source: HorNet (Rao et al. 2022), section 3.1, equations 3.3 and 3.4.
    """

    def __init__(self, dim: int, order: int, scale: float, filter_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.dims = [dim // 2**i for i in reversed(range(order))]
        self.scale = scale
        gates = sum(self.dims)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        self.dwconv: nn.Module = (
            nn.Conv2d(gates, gates, 7, padding=3, groups=gates)
            if filter_size is None
            else GlobalLocalFilter(gates, filter_size)
        )
        self.proj_out = nn.Conv2d(dim, dim, 1)
        self.pws = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(self.dims))

    def forward(self, x: Tensor) -> Tensor:
        projected, context = torch.split(self.proj_in(x), [self.dims[0], sum(self.dims)], dim=1)
        gates = torch.split(self.dwconv(context) * self.scale, self.dims, dim=1)
        x = projected * gates[0]
        for project, gate in zip(self.pws, gates[1:], strict=True):
            x = project(x) * gate
        out: Tensor = self.proj_out(x)
        return out

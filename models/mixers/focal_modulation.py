# SPDX-License-Identifier: Apache-2.0
"""Focal modulation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_LN_EPS = 1e-5


class FocalModulation(nn.Module):
    """(B, H, W, C) -> (B, H, W, C): each token times a summary of its surroundings at several distances.

    Args:
        dim: channels.
        window: side of the first depthwise convolution; each level's is 2 larger than the one before.
        levels: number of convolutions, each on the result of the one before; the mean of the whole map comes last.
        normalize: divide the gated sum by the number of its terms, `levels` + 1.
        post_norm: LayerNorm `ln` before the output projection.

    Source: FocalNet (Yang et al. 2022, "Focal Modulation Networks"), section 3.2, equations 4 to 7.
    """

    def __init__(self, dim: int, window: int, levels: int, normalize: bool, post_norm: bool) -> None:
        super().__init__()
        self.sizes = (dim, dim, levels + 1)
        self.terms = levels + 1 if normalize else 1
        self.f = nn.Linear(dim, sum(self.sizes))
        self.h = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Linear(dim, dim)
        sides = [window + 2 * level for level in range(levels)]
        self.focal_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, side, padding=side // 2, groups=dim, bias=False), nn.GELU())
            for side in sides
        )
        self.ln = nn.LayerNorm(dim, _LN_EPS) if post_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query, context, gates = self.f(x).permute(0, 3, 1, 2).split(self.sizes, dim=1)
        gate = gates.split(1, dim=1)
        context = self.focal_layers[0](context)
        gathered = context * gate[0]
        for layer, weight in zip(self.focal_layers[1:], gate[1:-1], strict=True):
            context = layer(context)
            gathered = gathered + context * weight
        gathered = gathered + F.gelu(context.mean((2, 3), keepdim=True)) * gate[-1]
        if self.terms > 1:
            gathered = gathered / self.terms
        modulated = (query * self.h(gathered)).permute(0, 2, 3, 1)
        out: Tensor = self.proj(self.ln(modulated))
        return out

# SPDX-License-Identifier: Apache-2.0
"""Patches of an image or a map as tokens."""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """A strided convolution and a LayerNorm: (B, C, H, W) -> (B, H / stride, W / stride, dim)."""

    def __init__(self, channels: int, dim: int, side: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, side, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out

# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention over all tokens of a map."""

from __future__ import annotations

from torch import Tensor, nn


class SelfAttention(nn.Module):
    """(B, ..., C) -> (B, ..., C): every token attends to all tokens of its own image.

    Args:
        dim: channels, a multiple of `head_dim`.
        proj_bias: whether the output projection has a bias; queries, keys and values have none.
        head_dim: channels of a head.

    Source: ViT (Dosovitskiy et al. 2021), as used by MetaFormer (Yu et al. 2022) and CAFormer (Yu et al. 2024).
    """

    def __init__(self, dim: int, proj_bias: bool, head_dim: int = 32) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.qkv(x.flatten(1, -2)).chunk(3, -1)
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for each in maps)
        weights = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        heads = (weights @ v).transpose(1, 2).reshape(-1, *x.shape[1:])
        out: Tensor = self.proj(heads)
        return out


class ChannelsFirstAttention(SelfAttention):
    """`SelfAttention` of a (B, C, H, W) map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

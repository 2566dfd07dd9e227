# SPDX-License-Identifier: Apache-2.0
"""A fixed random matrix over tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RandomMixing(nn.Module):
    """(B, H, W, C) -> (B, H, W, C) with H * W = `tokens`: every new token is a weighted sum of all tokens.

    The matrix was drawn once, its rows sum to 1, and training left it alone; it comes with the weights.

    Source: RandFormer (Yu et al. 2024, "MetaFormer Baselines for Vision"), section 3.2.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.random_matrix = nn.Parameter(torch.full((tokens, tokens), 1 / tokens))

    def forward(self, x: Tensor) -> Tensor:
        return (self.random_matrix @ x.flatten(1, 2)).reshape(-1, *x.shape[1:])

# SPDX-License-Identifier: Apache-2.0
"""One linear layer over all positions."""

from __future__ import annotations

from torch import Tensor, nn


class SpatialFc(nn.Module):
    """(B, C, H, W) -> (B, C, H, W) with H * W = `tokens`: every channel through the same linear layer over positions.

    Positions are numbered row by row; the layer has no bias.

    Source: MetaFormer (Yu et al. 2022), "SpatialFc", after ResMLP (Touvron et al. 2021).
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.fc = nn.Linear(tokens, tokens, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.fc(x.flatten(2))
        return mixed.reshape(-1, *x.shape[1:])

# SPDX-License-Identifier: Apache-2.0
"""The inverted separable convolution as a token mixer, and its activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StarReLU(nn.Module):
    """scale * relu(x)^2 + bias, elementwise; both are learned numbers.

    Source: MetaFormer baselines (Yu et al. 2024), section 4.2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x) ** 2 + self.bias


class SeparableConv(nn.Module):
    """(B, H, W, C) -> (B, H, W, C): linear to 2C, StarReLU, depthwise 7x7, linear to C; no biases.

    Source: MobileNetV2 (Sandler et al. 2018), as used by ConvFormer (Yu et al. 2024).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pwconv1 = nn.Linear(dim, 2 * dim, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 7, padding=3, groups=2 * dim, bias=False)
        self.pwconv2 = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.pwconv1(x)).permute(0, 3, 1, 2)
        out: Tensor = self.pwconv2(self.dwconv(x).permute(0, 2, 3, 1))
        return out

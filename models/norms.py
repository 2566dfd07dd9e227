# SPDX-License-Identifier: Apache-2.0
"""Normalisation layers that torch.nn does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of an NCHW map: (B, C, H, W) -> (B, C, H, W), biased variance.

    Source: HorNet, "LayerNorm ... channels_first". Written out as the authors do, so that eager
    results are theirs; the exporter fuses it (export/passes/fuse_channel_layer_norm.py).
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        normalised = centred / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * normalised + self.bias[:, None, None]


class ImageLayerNorm(nn.Module):
    """LayerNorm over height, width and channels of each image: (B, H, W, C) -> (B, H, W, C), biased variance.

    One weight per channel, no bias.

    Source: MetaFormer baselines, "LayerNormGeneral" over (1, 2, 3).
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - _mean_of_image(x)
        variance = _mean_of_image(centred.pow(2))
        return self.weight * (centred / torch.sqrt(variance + self.eps))


def _mean_of_image(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, 1, 1, 1), an axis at a time: short sums keep float32's accuracy in runtimes that
    add up one number after the other, where a map of 300,000 loses two digits.
    """
    return x.mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)

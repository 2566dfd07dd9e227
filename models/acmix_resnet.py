# SPDX-License-Identifier: Apache-2.0
"""ACmix in ResNet (Pan et al. 2022, "On the Integration of Self-Attention and Convolution", arXiv:2111.14556):
bottleneck blocks with ACmix in place of the 3x3 convolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .family import BuildOptions, Family, SizeRule, Variant
from .mixers.acmix import ACmix

_EXPANSION = 4
_SIZES = SizeRule(multiple=32, smallest=128, why="reflection by 3 needs maps of at least 4x4")

_Depths = tuple[int, int, int, int]


class Bottleneck(nn.Module):
    """(B, channels, H, W) -> (B, 4 * planes, H / stride, W / stride)."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out_channels = _EXPANSION * planes
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = ACmix(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()
        if stride > 1 or channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ACmixResNet(nn.Module):
    """ResNet of such bottlenecks; parameters under the authors' names.

    (B, in_chans, H, W) -> logits (B, num_classes), or with `features` the four stage maps
    (B, 256 * 2^i, H / 2^(i+2), W / 2^(i+2)).
    """

    def __init__(self, depths: _Depths, options: BuildOptions) -> None:
        super().__init__()
        channels = 64
        self.conv1 = nn.Conv2d(options.in_chans, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, depth in enumerate(depths):
            planes = 64 * 2**i
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(channels, planes, 2 if i > 0 and j == 0 else 1))
                channels = _EXPANSION * planes
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.features = options.features
        if not options.features:
            self.fc = nn.Linear(channels, options.num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        maps = []
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
            maps.append(x)
        if self.features:
            return tuple(maps)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _variant(layers: int, depths: _Depths, parameters: int) -> Variant:
    return Variant(
        name=f"acmix_resnet{layers}",
        short_name=f"acmix_r{layers}",
        config=depths,
        parameters=parameters,
        mixer_ops=("LocalAttention",),
        size_rule=_SIZES,
    )


FAMILY = Family(
    name="acmix_resnet",
    title="ACmix-ResNet",
    build=ACmixResNet,
    classifiers=("fc",),
    classifier_only=("fc.",),
    features="four stage maps",
    variants=(
        _variant(26, (1, 2, 4, 1), 10_487_816),
        _variant(38, (2, 3, 5, 2), 14_410_896),
        _variant(50, (3, 4, 6, 3), 18_333_976),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""HorNet (Rao et al. 2022, "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions",
arXiv:2207.14284).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import BuildOptions, Family, Preprocessing, Variant
from .mixers.gnconv import RecursiveGatedConv
from .necks.horfpn import HORFPN_7X7, HORFPN_GF
from .norms import ChannelLayerNorm

_ORDERS = (2, 3, 4, 5)
_EPS = 1e-6

_Filters = tuple[tuple[int, int] | None, ...]
_CONV_7X7: _Filters = (None, None, None, None)
_FILTER_224: _Filters = (None, None, (14, 8), (7, 4))
_FILTER_384: _Filters = (None, None, (24, 13), (12, 7))


@dataclass(frozen=True)
class HorNetConfig:
    """Channels of the first stage, spectral filter size (h, w) of each stage (None: 7x7), blocks of each stage."""

    width: int
    filters: _Filters = _CONV_7X7
    depths: tuple[int, int, int, int] = (2, 3, 18, 2)

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width * 2**i for i in range(len(self.depths)))


class Block(nn.Module):
    """(B, C, H, W) -> (B, C, H, W): gnConv, then a pointwise MLP, each with a layer scale."""

    def __init__(self, dim: int, order: int, filter_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.gamma1 = nn.Parameter(torch.ones(dim))
        self.gamma2 = nn.Parameter(torch.ones(dim))
        self.norm1 = ChannelLayerNorm(dim, _EPS)
        self.gnconv = RecursiveGatedConv(dim, order, scale=1 / 3, filter_size=filter_size)
        self.norm2 = nn.LayerNorm(dim, _EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1[:, None, None] * self.gnconv(self.norm1(x))
        tokens = self.norm2(x.permute(0, 2, 3, 1))
        tokens = self.gamma2 * self.pwconv2(F.gelu(self.pwconv1(tokens)))
        out: Tensor = x + tokens.permute(0, 3, 1, 2)
        return out


class HorNet(nn.Module):
    """HorNet; parameters under the authors' names.

    (B, in_chans, H, W) -> logits (B, num_classes), or with `features` the four stage maps
    (B, C * 2^i, H / 2^(i+2), W / 2^(i+2)), each through its own LayerNorm `norm{i}`.
    """

    def __init__(self, config: HorNetConfig, options: BuildOptions) -> None:
        super().__init__()
        dims = config.dims
        stem = nn.Sequential(nn.Conv2d(options.in_chans, dims[0], 4, 4), ChannelLayerNorm(dims[0], _EPS))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in pairwise(dims):
            self.downsample_layers.append(nn.Sequential(ChannelLayerNorm(before, _EPS), nn.Conv2d(before, after, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, order, size) for _ in range(depth)))
            for dim, order, size, depth in zip(dims, _ORDERS, config.filters, config.depths, strict=True)
        )
        self.features = options.features
        if options.features:
            for i, dim in enumerate(dims):
                self.add_module(f"norm{i}", ChannelLayerNorm(dim, _EPS))
            return
        self.norm = nn.LayerNorm(dims[-1], _EPS)
        self.head = nn.Linear(dims[-1], options.num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(downsample(x))
            if self.features:
                maps.append(self.get_submodule(f"norm{i}")(x))
        if self.features:
            return tuple(maps)
        logits: Tensor = self.head(self.norm(x.mean((-2, -1))))
        return logits


def _variant(size: str, width: int, suffix: str, filters: _Filters, parameters: int) -> Variant:
    short = f"hornet_{size[0]}" + ("" if suffix == "7x7" else f"_{suffix}")
    return Variant(
        name=f"hornet_{size}_{suffix}",
        short_name=short,
        config=HorNetConfig(width, filters),
        parameters=parameters,
        mixer_ops=() if filters is _CONV_7X7 else ("GlobalFilter",),
    )


def _at_384(variant: Variant) -> Variant:
    return replace(variant, image_size=384, preprocessing=Preprocessing(crop=1.0))


FAMILY = Family(
    name="hornet",
    title="HorNet",
    build=HorNet,
    features="four stage maps through norm0..norm3",
    feature_norms=("norm0.", "norm1.", "norm2.", "norm3."),
    stage_channels=lambda config: config.dims,
    necks=(HORFPN_7X7, HORFPN_GF),
    variants=(
        _variant("tiny", 64, "7x7", _CONV_7X7, 22_409_512),
        _variant("tiny", 64, "gf", _FILTER_224, 22_991_848),
        _variant("small", 96, "7x7", _CONV_7X7, 49_528_264),
        _variant("small", 96, "gf", _FILTER_224, 50_401_768),
        _variant("base", 128, "7x7", _CONV_7X7, 87_256_680),
        _variant("base", 128, "gf", _FILTER_224, 88_421_352),
        _at_384(_variant("base", 128, "gf_img384", _FILTER_384, 92_099_560)),
        _variant("large", 192, "7x7", _CONV_7X7, 194_542_504),
        _variant("large", 192, "gf", _FILTER_224, 196_289_512),
        _at_384(_variant("large", 192, "gf_img384", _FILTER_384, 201_806_824)),
    ),
)

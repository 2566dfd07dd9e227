# SPDX-License-Identifier: Apache-2.0
"""IdentityFormer, RandFormer, PoolFormerV2, ConvFormer and CAFormer (Yu et al. 2024, "MetaFormer Baselines for Vision",
arXiv:2210.13452).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import BuildOptions, Family, Preprocessing, SizeRule, Variant
from .mixers.pooling import ChannelsLastPooling
from .mixers.random_mixing import RandomMixing
from .mixers.self_attention import SelfAttention
from .mixers.separable_conv import SeparableConv, StarReLU
from .name_maps import NameMap, numbered
from .norms import ImageLayerNorm

Mixer = Literal["identity", "random", "pool", "conv", "attention"]
_Four = tuple[int, int, int, int]
_Counts = tuple[int, ...]
_EPS = 1e-6
_MAP_SIDES = (56, 28, 14, 7)
"""Height and width of each stage's map at 224 pixels, which random mixing is made for."""
_SCALED_STAGES = (2, 3)
"""Stages whose residual branches are scaled."""


@dataclass(frozen=True)
class BaselineConfig:
    """Blocks, channels and token mixer of each stage.

    Attributes:
        token_norm: LayerNorm over the channels of each token in the blocks, not over the whole map; such models
            also have an MLP as head.
        head_eps: of the norm inside that MLP.
    """

    depths: _Four
    dims: _Four
    mixers: tuple[Mixer, ...]
    token_norm: bool = False
    head_eps: float = 1e-5

    def norm(self, dim: int) -> nn.Module:
        return nn.LayerNorm(dim, _EPS, bias=False) if self.token_norm else ImageLayerNorm(dim, _EPS)

    def mixer(self, stage: int) -> nn.Module:
        dim = self.dims[stage]
        match self.mixers[stage]:
            case "identity":
                return nn.Identity()
            case "random":
                return RandomMixing(_MAP_SIDES[stage] ** 2)
            case "pool":
                return ChannelsLastPooling()
            case "conv":
                return SeparableConv(dim)
            case "attention":
                return SelfAttention(dim, proj_bias=False)


class Downsampling(nn.Module):
    """A strided convolution, with a norm before or after it; (B, H, W, C) in and out, but the stem takes NCHW."""

    def __init__(self, channels: int, dim: int, stem: bool) -> None:
        super().__init__()
        self.stem = stem
        self.pre_norm = nn.Identity() if stem else nn.LayerNorm(channels, _EPS, bias=False)
        self.conv = nn.Conv2d(channels, dim, 7, 4, 2) if stem else nn.Conv2d(channels, dim, 3, 2, 1)
        self.post_norm = nn.LayerNorm(dim, _EPS, bias=False) if stem else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if not self.stem:
            x = self.pre_norm(x).permute(0, 3, 1, 2)
        out: Tensor = self.post_norm(self.conv(x).permute(0, 2, 3, 1))
        return out


class Scale(nn.Module):
    """One learned factor per channel of a (..., C) tensor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Mlp(nn.Module):
    """(..., C) -> (..., C): linear to 4C, StarReLU, linear to C; no biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, bias=False)
        self.act = StarReLU()
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class MlpHead(nn.Module):
    """(B, C) -> (B, num_classes): linear to 4C, squared ReLU, LayerNorm, linear."""

    def __init__(self, dim: int, num_classes: int, eps: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.norm = nn.LayerNorm(4 * dim, eps)
        self.fc2 = nn.Linear(4 * dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.norm(F.relu(self.fc1(x)) ** 2))
        return logits


class Block(nn.Module):
    """(B, H, W, C) -> (B, H, W, C): token mixer, then MLP; in late stages the residual branches are scaled."""

    def __init__(self, config: BaselineConfig, stage: int) -> None:
        super().__init__()
        dim, scaled = config.dims[stage], stage in _SCALED_STAGES
        self.norm1 = config.norm(dim)
        self.token_mixer = config.mixer(stage)
        self.res_scale1 = Scale(dim) if scaled else nn.Identity()
        self.norm2 = config.norm(dim)
        self.mlp = Mlp(dim)
        self.res_scale2 = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_scale1(x) + self.token_mixer(self.norm1(x))
        out: Tensor = self.res_scale2(x) + self.mlp(self.norm2(x))
        return out


class Baseline(nn.Module):
    """A MetaFormer baseline; parameters under the authors' names.

    (B, in_chans, H, W) -> logits (B, num_classes), or with `features` the four stage maps
    (B, C_i, H / 2^(i+2), W / 2^(i+2)) as they leave the stages.
    """

    def __init__(self, config: BaselineConfig, options: BuildOptions) -> None:
        super().__init__()
        channels = (options.in_chans, *config.dims[:-1])
        self.downsample_layers = nn.ModuleList(
            Downsampling(before, dim, stem=stage == 0)
            for stage, (before, dim) in enumerate(zip(channels, config.dims, strict=True))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(config, stage) for _ in range(depth))) for stage, depth in enumerate(config.depths)
        )
        self.features = options.features
        if options.features:
            return
        dim = config.dims[-1]
        self.norm = nn.LayerNorm(dim, _EPS)
        self.head: nn.Module = (
            MlpHead(dim, options.num_classes, config.head_eps)
            if config.token_norm
            else nn.Linear(dim, options.num_classes)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            maps.append(x)
        if self.features:
            return tuple(each.permute(0, 3, 1, 2) for each in maps)
        logits: Tensor = self.head(self.norm(x.mean((1, 2))))
        return logits


_S = (64, 128, 320, 512)
_M = (96, 192, 384, 768)
_SIZES: dict[str, tuple[_Four, _Four]] = {
    "s12": ((2, 2, 6, 2), _S),
    "s24": ((4, 4, 12, 4), _S),
    "s36": ((6, 6, 18, 6), _S),
    "m36": ((6, 6, 18, 6), _M),
    "m48": ((8, 8, 24, 8), _M),
}
_CONV_SIZES: dict[str, tuple[_Four, _Four]] = {
    "s18": ((3, 3, 9, 3), _S),
    "s36": ((3, 12, 18, 3), _S),
    "m36": ((3, 12, 18, 3), (96, 192, 384, 576)),
    "b36": ((3, 12, 18, 3), (128, 256, 512, 768)),
}
_FIXED = SizeRule(only=224, why="its random matrices cover the tokens of one image size")


def _five(name: str, mixers: tuple[Mixer, ...], parameters: _Counts, size_rule: SizeRule) -> tuple[Variant, ...]:
    """IdentityFormer, RandFormer or PoolFormerV2 in their five sizes."""
    return tuple(
        _variant(f"{name}_{size}", BaselineConfig(*_SIZES[size], mixers), count, size_rule)
        for size, count in zip(_SIZES, parameters, strict=True)
    )


def _four(name: str, mixers: tuple[Mixer, ...], parameters: _Counts) -> tuple[Variant, ...]:
    """ConvFormer or CAFormer in their four sizes, each for 224 and for 384 pixels."""
    small = tuple(
        _variant(f"{name}_{size}", BaselineConfig(*_CONV_SIZES[size], mixers, token_norm=True), count, SizeRule())
        for size, count in zip(_CONV_SIZES, parameters, strict=True)
    )
    large = (
        replace(each, name=f"{each.name}_384", short_name=f"{each.short_name}_384", image_size=384) for each in small
    )
    return small + tuple(large)


def _variant(name: str, config: BaselineConfig, parameters: int, size_rule: SizeRule) -> Variant:
    return Variant(
        name=name,
        short_name=name,
        config=config,
        parameters=parameters,
        preprocessing=Preprocessing(crop=1.0),
        size_rule=size_rule,
    )


_TIMM = NameMap(
    source="timm",
    recognised_by=(r"stem\.norm\.weight", r"stages[._]\d+\.blocks\.\d+\.mlp\.act\.scale"),
    rules=(
        (r"^stem\.conv\.", "downsample_layers.0.conv."),
        (r"^stem\.norm\.", "downsample_layers.0.post_norm."),
        (r"^stages[._](\d+)\.downsample\.conv\.", numbered("downsample_layers.{}.conv.")),
        (r"^stages[._](\d+)\.downsample\.norm\.", numbered("downsample_layers.{}.pre_norm.")),
        (r"^stages[._](\d+)\.blocks\.", r"stages.\1."),
        (r"^head\.norm\.", "norm."),  # before the next rule, which makes another head.norm
        (r"^head\.fc\.", "head."),
    ),
    variants="(poolformerv2|convformer|caformer)_.*",
    adapt=lambda config: replace(config, head_eps=1e-6) if config.token_norm else config,
    differs="the head's norm has an epsilon of 1e-6 instead of 1e-5",
)

FAMILY = Family(
    name="metaformer_baselines",
    title="MetaFormer baselines",
    build=Baseline,
    classifiers=("head", "head.fc2"),
    features="four stage maps as they leave the stages",
    name_maps=(_TIMM,),
    variants=(
        # PoolFormerV2 first: IdentityFormer has the same tensors and is the rarer file.
        *_five("poolformerv2", ("pool",) * 4, (11_891_712, 21_341_464, 30_791_216, 56_077_168, 73_346_056), SizeRule()),
        *_five(
            "identityformer",
            ("identity",) * 4,
            (11_891_712, 21_341_464, 30_791_216, 56_077_168, 73_346_056),
            SizeRule(),
        ),
        *_five(
            "randformer",
            ("identity", "identity", "random", "random"),
            (12_127_010, 21_812_060, 31_497_110, 56_783_062, 74_287_248),
            _FIXED,
        ),
        *_four("convformer", ("conv",) * 4, (26_774_448, 40_012_152, 57_051_640, 99_882_616)),
        *_four(
            "caformer", ("conv", "conv", "attention", "attention"), (26_341_656, 39_297_102, 56_204_878, 98_753_614)
        ),
    ),
)

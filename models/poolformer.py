# SPDX-License-Identifier: Apache-2.0
"""PoolFormer and the first MetaFormers (Yu et al. 2022, "MetaFormer is Actually What You Need for Vision",
arXiv:2111.11418).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import BuildOptions, Family, Preprocessing, SizeRule, Variant
from .mixers.pooling import Pooling
from .mixers.self_attention import ChannelsFirstAttention
from .mixers.spatial_fc import SpatialFc
from .name_maps import NameMap, numbered
from .norms import ChannelLayerNorm

Mixer = Literal["pool", "identity", "attention", "spatial_fc"]
_EPS = 1e-5
_POOL: tuple[Mixer, ...] = ("pool",) * 4
_MAP_SIDES = (56, 28, 14, 7)
"""Height and width of each stage's map at 224 pixels, which some mixers are made for."""
_FIXED = SizeRule(only=224, why="its weights cover the tokens of one image size")


@dataclass(frozen=True)
class PoolFormerConfig:
    """Blocks, channels and token mixer of each stage.

    Attributes:
        channel_norm: LayerNorm over channels instead of GroupNorm with one group.
        pos_embed: index of the stage that a position embedding is added before, or None.
        pool_first: the head takes the mean over the map before its norm, a LayerNorm then.
    """

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    mixers: tuple[Mixer, ...] = _POOL
    channel_norm: bool = False
    pos_embed: int | None = None
    pool_first: bool = False

    def norm(self, dim: int) -> nn.Module:
        return ChannelLayerNorm(dim, _EPS) if self.channel_norm else nn.GroupNorm(1, dim, _EPS)

    def mixer(self, stage: int) -> nn.Module:
        match self.mixers[stage]:
            case "pool":
                return Pooling()
            case "identity":
                return nn.Identity()
            case "attention":
                return ChannelsFirstAttention(self.dims[stage], proj_bias=True)
            case "spatial_fc":
                return SpatialFc(_MAP_SIDES[stage] ** 2)


class PatchEmbed(nn.Module):
    """A strided convolution: (B, C, H, W) -> (B, dim, H / stride, W / stride)."""

    def __init__(self, channels: int, dim: int, side: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, side, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class PositionEmbedding(nn.Module):
    """(B, C, H, W) -> the same plus a learned map."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, side, side))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed


class Mlp(nn.Module):
    """Two pointwise convolutions with a GELU between, per token of a (B, C, H, W) map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 4 * dim, 1)
        self.fc2 = nn.Conv2d(4 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """(B, C, H, W) -> (B, C, H, W): token mixer, then MLP, each with a layer scale."""

    def __init__(self, config: PoolFormerConfig, stage: int) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.layer_scale_1 = nn.Parameter(torch.ones(dim))
        self.layer_scale_2 = nn.Parameter(torch.ones(dim))
        self.norm1 = config.norm(dim)
        self.token_mixer = config.mixer(stage)
        self.norm2 = config.norm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.token_mixer(self.norm1(x))
        out: Tensor = x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))
        return out


class PoolFormer(nn.Module):
    """PoolFormer or MetaFormer; parameters under the authors' names.

    (B, in_chans, H, W) -> logits (B, num_classes), or with `features` the four stage maps
    (B, C_i, H / 2^(i+2), W / 2^(i+2)), each through a norm of its own, `norm{index of the stage in network}`.
    """

    def __init__(self, config: PoolFormerConfig, options: BuildOptions) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(options.in_chans, config.dims[0], 7, 4, 2)
        network: list[nn.Module] = []
        self.ends: dict[int, str] = {}
        for stage, (depth, dim) in enumerate(zip(config.depths, config.dims, strict=True)):
            if stage:
                network.append(PatchEmbed(config.dims[stage - 1], dim, 3, 2, 1))
            if stage == config.pos_embed:
                network.append(PositionEmbedding(dim, _MAP_SIDES[stage]))
            self.ends[len(network)] = f"norm{len(network)}"
            network.append(nn.Sequential(*(Block(config, stage) for _ in range(depth))))
        self.network = nn.ModuleList(network)
        self.features = options.features
        if options.features:
            for name, dim in zip(self.ends.values(), config.dims, strict=True):
                self.add_module(name, config.norm(dim))
            return
        self.pool_first = config.pool_first
        self.norm = nn.LayerNorm(config.dims[-1], 1e-6) if config.pool_first else config.norm(config.dims[-1])
        self.head = nn.Linear(config.dims[-1], options.num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.patch_embed(x)
        maps = []
        for i, part in enumerate(self.network):
            x = part(x)
            if self.features and i in self.ends:
                maps.append(self.get_submodule(self.ends[i])(x))
        if self.features:
            return tuple(maps)
        pooled = self.norm(x.mean((-2, -1))) if self.pool_first else self.norm(x).mean((-2, -1))
        logits: Tensor = self.head(pooled)
        return logits


_S12 = ((2, 2, 6, 2), (64, 128, 320, 512))


def _poolformer(
    name: str, depths: tuple[int, int, int, int], dims: tuple[int, int, int, int], parameters: int
) -> Variant:
    crop = 0.9 if name.startswith("s") else 0.95
    return Variant(
        name=f"poolformer_{name}",
        short_name=f"poolformer_{name}",
        config=PoolFormerConfig(depths, dims),
        parameters=parameters,
        preprocessing=Preprocessing(crop=crop),
    )


def _metaformer(name: str, config: PoolFormerConfig, parameters: int, size_rule: SizeRule = _FIXED) -> Variant:
    return Variant(
        name=f"metaformer_{name}",
        short_name=f"metaformer_{name}",
        config=config,
        parameters=parameters,
        preprocessing=Preprocessing(crop=0.95),
        size_rule=size_rule,
    )


def _hybrid(last: Mixer, from_stage: int) -> PoolFormerConfig:
    """Pooling up to a stage, another mixer from there on."""
    mixers = _POOL[:from_stage] + (last,) * (4 - from_stage)
    if last == "attention":
        return PoolFormerConfig(*_S12, mixers, channel_norm=True, pos_embed=from_stage)
    return PoolFormerConfig(*_S12, mixers)


_TIMM = NameMap(
    source="timm",
    recognised_by=(r"stem\.conv\.weight", r"stages[._]\d+\.blocks\.\d+\.layer_scale1\.scale"),
    rules=(
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^stages[._](\d+)\.blocks\.", numbered("network.{}.", times=2)),
        (r"^stages[._](\d+)\.downsample\.conv\.", numbered("network.{}.proj.", times=2, plus=-1)),
        (r"\.layer_scale([12])\.scale$", r".layer_scale_\1"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ),
    variants="poolformer_.*",
    adapt=lambda config: replace(config, pool_first=True),
    differs="the mean over the map comes before the last norm",
)
_HUGGINGFACE = NameMap(
    source="huggingface",
    recognised_by=(r"(poolformer\.)?encoder\.block\.\d+\.\d+\.before_norm\.weight",),
    rules=(
        (r"^(poolformer\.)?encoder\.", ""),
        (r"^patch_embeddings\.0\.projection\.", "patch_embed.proj."),
        (r"^patch_embeddings\.(\d+)\.projection\.", numbered("network.{}.proj.", times=2, plus=-1)),
        (r"^block\.(\d+)\.", numbered("network.{}.", times=2)),
        (r"\.before_norm\.", ".norm1."),
        (r"\.after_norm\.", ".norm2."),
        (r"\.output\.conv([12])\.", r".mlp.fc\1."),
        (r"^classifier\.", "head."),
    ),
    variants="poolformer_.*",
)

FAMILY = Family(
    name="poolformer",
    title="PoolFormer",
    build=PoolFormer,
    features="four stage maps, each through a norm of its own",
    feature_norms=tuple(f"norm{i}." for i in range(9)),
    name_maps=(_TIMM, _HUGGINGFACE),
    variants=(
        _poolformer("s12", *_S12, 11_915_176),
        _poolformer("s24", (4, 4, 12, 4), (64, 128, 320, 512), 21_388_968),
        _poolformer("s36", (6, 6, 18, 6), (64, 128, 320, 512), 30_862_760),
        _poolformer("m36", (6, 6, 18, 6), (96, 192, 384, 768), 56_172_520),
        _poolformer("m48", (8, 8, 24, 8), (96, 192, 384, 768), 73_473_448),
        _metaformer("id_s12", PoolFormerConfig(*_S12, ("identity",) * 4), 11_915_176, SizeRule()),
        _metaformer("pppa_s12_224", _hybrid("attention", 3), 14_038_440),
        _metaformer("ppaa_s12_224", _hybrid("attention", 2), 16_535_592),
        _metaformer("pppf_s12_224", _hybrid("spatial_fc", 3), 11_919_978),
        _metaformer("ppff_s12_224", _hybrid("spatial_fc", 2), 12_150_474),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""BOAT-CSWin (Yu et al. 2022, "BOAT: Bilateral Local Attention Vision Transformer", arXiv:2201.13027):
CSWin Transformer (Dong et al. 2022, arXiv:2107.00652) whose even blocks also attend in feature space.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from .boat_swin import SIZES
from .family import BuildOptions, Family, Preprocessing, Variant
from .mixers.cross_shaped_attention import CrossShapedAttention
from .mixers.feature_space_attention import FeatureSpaceAttention
from .mlp import Mlp

_CONTENT_SCALE = 1.0
"""The authors' code passes qkv_bias where the scale belongs, so that it is 1; the weights were trained so."""


@dataclass(frozen=True)
class BoatCSWinConfig:
    """Channels of the first stage; blocks, heads and width of the stripes (in tokens) of each stage."""

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    stripes: tuple[int, int, int, int] = (1, 2, 7, 7)


class Block(nn.Module):
    """(B, H, W, dim) -> (B, H, W, dim): cross-shaped windows, in even blocks feature-space attention, MLP."""

    def __init__(self, dim: int, heads: int, stripe: int | None, *, content: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm1 = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)
        self.attns = CrossShapedAttention(dim, heads, stripe)
        if content:
            self.content_attn = FeatureSpaceAttention(dim, heads, _CONTENT_SCALE)
            self.norm3 = nn.LayerNorm(dim)
        self.content = content
        self.mlp = Mlp(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(self.attns(*self.qkv(self.norm1(x)).chunk(3, -1)))
        if self.content:
            x = x + self.content_attn(self.norm3(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Merge(nn.Module):
    """(B, H, W, C) -> (B, H / 2, W / 2, C'): convolution 3 stride 2, then LayerNorm."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, 2, 1)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


class ToTokens(nn.Module):
    """(B, C, H, W) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class BoatCSWin(nn.Module):
    """BOAT-CSWin; parameters under the authors' names.

    (B, in_chans, 224, 224) -> logits (B, num_classes), or with `features` the four stage maps
    (B, C * 2^i, 224 / 2^(i+2), 224 / 2^(i+2)).
    """

    def __init__(self, config: BoatCSWinConfig, options: BuildOptions) -> None:
        super().__init__()
        dims = [config.width * 2**i for i in range(4)]
        self.stage1_conv_embed = nn.Sequential(
            nn.Conv2d(options.in_chans, dims[0], 7, 4, 2), ToTokens(), nn.LayerNorm(dims[0])
        )
        merges = [Merge(before, after) for before, after in pairwise(dims)]
        for i, (dim, depth, heads, stripe) in enumerate(
            zip(dims, config.depths, config.heads, config.stripes, strict=True), start=1
        ):
            width = None if i == 4 else stripe
            blocks = (Block(dim, heads, width, content=j % 2 == 0) for j in range(depth))
            self.add_module(f"stage{i}", nn.Sequential(*blocks))
            if i < 4:
                self.add_module(f"merge{i}", merges[i - 1])
        self.features = options.features
        if not options.features:
            self.norm = nn.LayerNorm(dims[-1])
            self.head = nn.Linear(dims[-1], options.num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.stage1_conv_embed(x)
        maps = []
        for i in range(1, 5):
            x = self.get_submodule(f"stage{i}")(x)
            if self.features:
                maps.append(x.permute(0, 3, 1, 2))
            if i < 4:
                x = self.get_submodule(f"merge{i}")(x)
        if self.features:
            return tuple(maps)
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits


def _variant(size: str, config: BoatCSWinConfig, parameters: int) -> Variant:
    return Variant(
        name=f"boat_cswin_{size}",
        short_name=f"boat_cswin_{size[0]}",
        config=config,
        parameters=parameters,
        preprocessing=Preprocessing(crop=0.9),
        mixer_ops=("BalancedClustering", "ClusterAttention"),
        size_rule=SIZES,
    )


_SMALL_HEADS, _LARGE_HEADS = (2, 4, 8, 16), (4, 8, 16, 32)

FAMILY = Family(
    name="boat_cswin",
    title="BOAT-CSWin",
    build=BoatCSWin,
    features="four stage maps before the merging convolutions",
    variants=(
        _variant("tiny", BoatCSWinConfig(64, (1, 2, 21, 1), _SMALL_HEADS), 26_390_952),
        _variant("small", BoatCSWinConfig(64, (2, 4, 32, 2), _SMALL_HEADS), 40_112_488),
        _variant("base", BoatCSWinConfig(96, (2, 4, 32, 2), _LARGE_HEADS), 89_628_712),
        _variant("large", BoatCSWinConfig(144, (2, 4, 32, 2), (6, 12, 24, 24)), 200_728_648),
    ),
)

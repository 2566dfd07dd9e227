# SPDX-License-Identifier: Apache-2.0
"""FocalNet (Yang et al. 2022, "Focal Modulation Networks", arXiv:2203.11926)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .embedding import PatchEmbed
from .family import BuildOptions, Family, SizeRule, Variant
from .mixers.focal_modulation import FocalModulation
from .mlp import Mlp
from .name_maps import NameMap, numbered

_EPS = 1e-5


@dataclass(frozen=True)
class FocalNetConfig:
    """Channels of the first stage, blocks of each stage, and what a block holds.

    Attributes:
        levels: depthwise convolutions of a modulation.
        window: side of the first of them.
        patch: side of the patches of the first embedding; with `conv_embed` they overlap.
        layer_scale: a learned factor per channel on every residual branch.
        post_norm: norms after the branches instead of before them.
        norm_in_modulation: a norm before the modulation's output projection.
        normalize: divide a modulation's sum by the number of its terms.
    """

    width: int
    depths: tuple[int, ...]
    levels: int
    window: int = 3
    patch: int = 4
    conv_embed: bool = False
    layer_scale: bool = False
    post_norm: bool = False
    norm_in_modulation: bool = False
    normalize: bool = False


class Block(nn.Module):
    """(B, H, W, C) -> (B, H, W, C): focal modulation, then MLP."""

    def __init__(self, config: FocalNetConfig, dim: int) -> None:
        super().__init__()
        self.layer_scale, self.post_norm = config.layer_scale, config.post_norm
        if config.layer_scale:
            self.gamma_1 = nn.Parameter(torch.ones(dim))
            self.gamma_2 = nn.Parameter(torch.ones(dim))
        self.norm1 = nn.LayerNorm(dim, _EPS)
        self.modulation = FocalModulation(
            dim, config.window, config.levels, config.normalize, config.norm_in_modulation
        )
        self.norm2 = nn.LayerNorm(dim, _EPS)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self._normed(self.modulation, self.norm1, x)
        x = x + (self.gamma_1 * mixed if self.layer_scale else mixed)
        mixed = self._normed(self.mlp, self.norm2, x)
        return x + (self.gamma_2 * mixed if self.layer_scale else mixed)

    def _normed(self, branch: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = norm(branch(x)) if self.post_norm else branch(norm(x))
        return out


class Stage(nn.Module):
    """Blocks, and the embedding that leads to the next stage, if there is one."""

    def __init__(self, config: FocalNetConfig, index: int) -> None:
        super().__init__()
        dim = config.width * 2**index
        self.blocks = nn.ModuleList(Block(config, dim) for _ in range(config.depths[index]))
        self.downsample: PatchEmbed | None = None
        if index + 1 < len(config.depths):
            side, padding = (3, 1) if config.conv_embed else (2, 0)
            self.downsample = PatchEmbed(dim, 2 * dim, side, 2, padding)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The (B, H, W, C) map after the blocks, and the next stage's input."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x.permute(0, 3, 1, 2))


class FocalNet(nn.Module):
    """FocalNet; parameters under the authors' names.

    (B, in_chans, H, W) -> logits (B, num_classes), or with `features` the four stage maps
    (B, C * 2^i, H / 2^(i+2), W / 2^(i+2)) as they leave the stages.
    """

    def __init__(self, config: FocalNetConfig, options: BuildOptions) -> None:
        super().__init__()
        side, padding = (7, 2) if config.conv_embed else (config.patch, 0)
        self.patch_embed = PatchEmbed(options.in_chans, config.width, side, config.patch, padding)
        self.layers = nn.ModuleList(Stage(config, index) for index in range(len(config.depths)))
        self.features = options.features
        if options.features:
            return
        dim = config.width * 2 ** (len(config.depths) - 1)
        self.norm = nn.LayerNorm(dim, _EPS)
        self.head = nn.Linear(dim, options.num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.patch_embed(x)
        maps = []
        for stage in self.layers:
            end, x = stage(x)
            maps.append(end)
        if self.features:
            return tuple(each.permute(0, 3, 1, 2) for each in maps)
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits


_T, _SB = (2, 2, 6, 2), (2, 2, 18, 2)
_ISO_SIZES = SizeRule(16)


def _small(size: str, width: int, depths: tuple[int, ...], parameters: tuple[int, int]) -> tuple[Variant, ...]:
    """The small and the large receptive field of a size."""
    short = f"focalnet_{size[0]}"
    srf, lrf = parameters
    return (
        Variant(f"focalnet_{size}_srf", short, FocalNetConfig(width, depths, 2), srf),
        Variant(f"focalnet_{size}_lrf", f"{short}_lrf", FocalNetConfig(width, depths, 3), lrf),
    )


def _isotropic(size: str, width: int, parameters: int, deep: bool = False) -> Variant:
    return Variant(
        name=f"focalnet_{size}_iso",
        short_name=f"focalnet_{size[0]}_iso",
        config=FocalNetConfig(width, (12,), 3, patch=16, layer_scale=deep, post_norm=deep),
        parameters=parameters,
        size_rule=_ISO_SIZES,
        isotropic=True,
    )


def _large(
    size: str,
    width: int,
    levels: int,
    parameters: int,
    window: int = 3,
    normalize: bool = False,
    norm_in_modulation: bool = False,
) -> Variant:
    short = {"large": "l", "xlarge": "xl", "huge": "h"}[size]
    config = FocalNetConfig(
        width,
        _SB,
        levels,
        window,
        conv_embed=True,
        layer_scale=True,
        post_norm=True,
        norm_in_modulation=norm_in_modulation,
        normalize=normalize,
    )
    return Variant(f"focalnet_{size}_fl{levels}", f"focalnet_{short}_fl{levels}", config, parameters)


_TIMM = NameMap(
    source="timm",
    recognised_by=(r"stem\.proj\.weight", r"layers[._]\d+\.blocks\.\d+\.modulation\.f\.weight"),
    rules=(
        (r"^stem\.", "patch_embed."),
        (r"^layers_(\d+)\.", r"layers.\1."),
        (r"^layers\.(\d+)\.downsample\.", numbered("layers.{}.downsample.", plus=-1)),
        (r"\.norm([12])_post\.", r".norm\1."),
        (r"\.ls([12])\.gamma$", r".gamma_\1"),
        (r"\.modulation\.norm\.", ".modulation.ln."),
        (r"^head\.fc\.", "head."),
    ),
    variants=r"focalnet_.*(?<!_iso)",
    adapt=lambda config: replace(config, normalize=False),
    differs="the modulation's sum is not divided by the number of its terms",
)
_HUGGINGFACE = NameMap(
    source="huggingface",
    recognised_by=(r"(focalnet\.)?encoder\.stages\.\d+\.layers\.\d+\.modulation\.projection_in\.weight",),
    rules=(
        (r"^focalnet\.", ""),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.norm\.", "patch_embed.norm."),
        (r"^encoder\.stages\.(\d+)\.layers\.", r"layers.\1.blocks."),
        (r"^encoder\.stages\.(\d+)\.downsample\.projection\.", r"layers.\1.downsample.proj."),
        (r"^encoder\.stages\.(\d+)\.downsample\.", r"layers.\1.downsample."),
        (r"\.modulation\.projection_in\.", ".modulation.f."),
        (r"\.modulation\.projection_context\.", ".modulation.h."),
        (r"\.modulation\.projection_out\.", ".modulation.proj."),
        (r"\.modulation\.layernorm\.", ".modulation.ln."),
        (r"^layernorm\.", "norm."),
        (r"^classifier\.", "head."),
    ),
)

FAMILY = Family(
    name="focalnet",
    title="FocalNet",
    build=FocalNet,
    features="four stage maps as they leave the stages",
    name_maps=(_TIMM, _HUGGINGFACE),
    variants=(
        *_small("tiny", 96, _T, (28_427_116, 28_647_928)),
        *_small("small", 96, _SB, (49_891_216, 50_342_440)),
        *_small("base", 128, _SB, (88_148_144, 88_749_768)),
        _isotropic("tiny", 192, 5_880_280),
        _isotropic("small", 384, 22_376_344),
        _isotropic("base", 768, 87_237_400, deep=True),
        _large("large", 192, 3, 207_100_744, window=5),
        _large("large", 192, 4, 207_281_248, normalize=True),
        _large("xlarge", 256, 3, 366_082_120, window=5),
        _large("xlarge", 256, 4, 366_322_784),
        _large("huge", 352, 3, 686_564_424, norm_in_modulation=True),
        _large("huge", 352, 4, 689_277_664, norm_in_modulation=True),
    ),
)

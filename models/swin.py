# SPDX-License-Identifier: Apache-2.0
"""What the families built on Swin Transformer share (Liu et al. 2021, arXiv:2103.14030): everything but the block.

Parameters are under the authors' names. Maps are (B, H, W, C) inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from .embedding import PatchEmbed
from .family import BuildOptions, SizeRule

WINDOW = 7
DERIVED = ("relative_position_index", "attn_mask")
"""Buffers that the authors store and that follow from the sizes."""
SIZES = SizeRule(multiple=224, why="every stage divides into windows of 7")

MakeBlock = Callable[[int, int, int], nn.Module]
"""(dim, heads, shift wanted) -> a block (B, H, W, dim) -> (B, H, W, dim)."""


@dataclass(frozen=True)
class SwinConfig:
    """Channels of the first stage, blocks and heads of each stage."""

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]


TINY = SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24))
SMALL = SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24))
BASE = SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32))


class PatchMerging(nn.Module):
    """(B, H, W, C) -> (B, H / 2, W / 2, 2 * C): the four tokens of every 2x2 become one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        # One transpose instead of four strided slices and a concatenation, in the authors' order: column by column,
        # (0, 0), (1, 0), (0, 1), (1, 1).
        _, height, width, dim = x.shape
        squares = x.reshape(-1, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)
        out: Tensor = self.reduction(self.norm(squares.flatten(3)))
        return out


class Shifted(nn.Module):
    """Runs a window mixer on a map that is cyclically shifted, and shifts back.

    There is no shift where the map is a single window high or wide.
    """

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.wanted = wanted

    def forward(self, x: Tensor, mixer: nn.Module) -> Tensor:
        shift = self.wanted if min(x.shape[1:3]) > WINDOW else 0
        if not shift:
            out: Tensor = mixer(x, 0)
            return out
        x = mixer(x.roll((-shift, -shift), (1, 2)), shift)
        return x.roll((shift, shift), (1, 2))


class Stage(nn.Module):
    """Blocks, every second one shifted, then patch merging unless it is the last stage."""

    def __init__(self, dim: int, heads: int, depth: int, make_block: MakeBlock, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make_block(dim, heads, WINDOW // 2 * (i % 2)) for i in range(depth))
        if not last:
            self.downsample = PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Swin(nn.Module):
    """A Swin trunk around any block.

    (B, in_chans, H, W) -> logits (B, num_classes), or with `features` the four stage maps
    (B, C * 2^i, H / 2^(i+2), W / 2^(i+2)) before patch merging.
    """

    def __init__(self, config: SwinConfig, options: BuildOptions, make_blocks: Callable[[int], MakeBlock]) -> None:
        super().__init__()
        dims = [config.width * 2**i for i in range(4)]
        self.patch_embed = PatchEmbed(options.in_chans, dims[0], 4, 4)
        self.layers = nn.ModuleList(
            Stage(dim, heads, depth, make_blocks(i), last=i == 3)
            for i, (dim, heads, depth) in enumerate(zip(dims, config.heads, config.depths, strict=True))
        )
        self.features = options.features
        if not options.features:
            self.norm = nn.LayerNorm(dims[-1])
            self.head = nn.Linear(dims[-1], options.num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.patch_embed(x)
        maps = []
        for stage in self.layers:
            x = stage(x)
            if self.features:
                maps.append(x.permute(0, 3, 1, 2))
            if stage is not self.layers[-1]:
                x = stage.get_submodule("downsample")(x)
        if self.features:
            return tuple(maps)
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits

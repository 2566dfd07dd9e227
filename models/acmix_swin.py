# SPDX-License-Identifier: Apache-2.0
"""ACmix in Swin Transformer (Pan et al. 2022, "On the Integration of Self-Attention and Convolution",
arXiv:2111.14556).
"""

from __future__ import annotations

from torch import Tensor, nn

from .family import BuildOptions, Family, Variant
from .mixers.acmix import WindowACmix
from .mlp import Mlp
from .swin import DERIVED, SIZES, SMALL, TINY, WINDOW, Shifted, Swin, SwinConfig


class Block(nn.Module):
    """(B, H, W, dim) -> (B, H, W, dim): window ACmix on the (shifted) map, then MLP."""

    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shifted = Shifted(shift)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowACmix(dim, WINDOW, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shifted(self.norm1(x), self.attn)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def build(config: SwinConfig, options: BuildOptions) -> nn.Module:
    """A Swin trunk of such blocks."""
    return Swin(config, options, lambda stage: Block)


FAMILY = Family(
    name="acmix_swin",
    title="ACmix-Swin",
    build=build,
    features="four stage maps before patch merging",
    derived=DERIVED,
    variants=(
        Variant("acmix_swin_tiny", "acmix_swin_t", TINY, parameters=28_649_908, size_rule=SIZES),
        Variant("acmix_swin_small", "acmix_swin_s", SMALL, parameters=50_345_080, size_rule=SIZES),
    ),
)

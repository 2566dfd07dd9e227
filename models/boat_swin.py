# SPDX-License-Identifier: Apache-2.0
"""BOAT-Swin (Yu et al. 2022, "BOAT: Bilateral Local Attention Vision Transformer", arXiv:2201.13027):
Swin Transformer whose shifted blocks also attend in feature space.
"""

from __future__ import annotations

from torch import Tensor, nn

from .family import BuildOptions, Family, SizeRule, Variant
from .mixers.feature_space_attention import FeatureSpaceAttention
from .mixers.window_attention import WindowAttention
from .mlp import Mlp
from .swin import BASE, DERIVED, SMALL, TINY, WINDOW, Shifted, Swin, SwinConfig

SIZES = SizeRule(only=224, why="every stage needs 49 * 2^k tokens")


class Block(nn.Module):
    """(B, H, W, dim) -> (B, H, W, dim): window attention, in shifted blocks feature-space attention, MLP."""

    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shifted = Shifted(shift)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, WINDOW, heads)
        if shift:
            self.attnC = FeatureSpaceAttention(dim, heads)
            self.norm4 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shifted(self.norm1(x), self.attn)
        if self.shifted.wanted:
            x = x + self.attnC(self.norm4(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def build(config: SwinConfig, options: BuildOptions) -> nn.Module:
    """A Swin trunk of such blocks; the last stage is one window, which is never shifted."""
    return Swin(config, options, lambda stage: lambda dim, heads, shift: Block(dim, heads, shift * (stage < 3)))


def _variant(size: str, config: SwinConfig, parameters: int) -> Variant:
    return Variant(
        name=f"boat_swin_{size}",
        short_name=f"boat_swin_{size[0]}",
        config=config,
        parameters=parameters,
        mixer_ops=("BalancedClustering", "ClusterAttention"),
        size_rule=SIZES,
    )


FAMILY = Family(
    name="boat_swin",
    title="BOAT-Swin",
    build=build,
    features="four stage maps before patch merging",
    derived=DERIVED,
    variants=(
        _variant("tiny", TINY, 30_265_186),
        _variant("small", SMALL, 55_158_898),
        _variant("base", BASE, 97_612_960),
    ),
)

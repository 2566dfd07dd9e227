# SPDX-License-Identifier: Apache-2.0
"""HorFPN: a feature pyramid whose output convolutions are gnConvs (Rao et al. 2022, arXiv:2207.14284, section 3.3)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ..family import Neck
from ..mixers.gnconv import RecursiveGatedConv

_WIDTH = 256
_ORDER = 2
_OUTPUTS = ("p2", "p3", "p4", "p5", "p6")


class HorFPN(nn.Module):
    """Four maps (B, C_i, H_i, W_i), each half as large as the one before, to five (B, 256, H_i, W_i).

    A 1x1 convolution per map; from the last map down, nearest upsampling by 2 onto the map before; a gnConv
    of order 2 on every sum. The fifth map is every second row and column of the fourth result.
    Parameters under the authors' names.

    Args:
        channels: C_i of each stage map.
        filter_size: (h, w) of the spectral weights that take the place of the gnConvs' 7x7; None for the 7x7.

    Source: HorNet, section 3.3; the top-down path is that of FPN (Lin et al. 2017, section 3).
    """

    def __init__(self, channels: Sequence[int], filter_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(dim, _WIDTH, 1))) for dim in channels
        )
        self.fpn_convs = nn.ModuleList(RecursiveGatedConv(_WIDTH, _ORDER, 1.0, filter_size) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        sums = [laterals[-1]]
        for finer in reversed(laterals[:-1]):
            # A factor instead of the finer map's size: the exported Resize then has constant scales, and ONNX
            # Runtime keeps it in the convolutions' layout. Sizes that divide by 32 make every map twice the next.
            sums.append(finer + F.interpolate(sums[-1], scale_factor=2, mode="nearest"))
        levels = [conv(x) for conv, x in zip(self.fpn_convs, reversed(sums), strict=True)]
        return (*levels, F.max_pool2d(levels[-1], 1, stride=2))


HORFPN_7X7 = Neck(name="horfpn_7x7", title="HorFPN with 7x7 gnConvs", build=HorFPN, outputs=_OUTPUTS)
HORFPN_GF = Neck(
    name="horfpn_gf",
    title="HorFPN with global filters",
    build=partial(HorFPN, filter_size=(32, 17)),  # of a 32x32 map
    outputs=_OUTPUTS,
    mixer_ops=("GlobalFilter",),
)

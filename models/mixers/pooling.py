# SPDX-License-Identifier: Apache-2.0
"""Average pooling as a token mixer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Pooling(nn.Module):
    """(B, C, H, W) -> (B, C, H, W): the mean of the 3x3 around each token, less the token itself.

    At the border the mean is of the neighbours that exist. The block adds the token again, so that
    what remains is the pooling.

    Source: PoolFormer (Yu et al. 2022), section 3.2, equation 4.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False) - x


class ChannelsLastPooling(Pooling):
    """`Pooling` of a (B, H, W, C) map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

# SPDX-License-Identifier: Apache-2.0
"""ACmix: attention and convolution that share one projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .local_attention import local_attention
from .window_attention import WindowAttention

_KERNEL = 3


def projected_convolution(qkv: Tensor, fc: nn.Conv2d, dep_conv: nn.Conv2d, heads: int) -> Tensor:
    """ACmix's convolution path: a k x k convolution out of queries, keys and values.

    Args:
        qkv: (B, 3 * dim, H, W), channels ordered by projection, head, channel of the head.
        fc: 1x1 from the 3 * heads maps of one channel position to k^2 maps.
        dep_conv: k x k, one group for each channel position.

    Returns:
        (B, dim, H / stride, W / stride), stride of `dep_conv`.

    Source: Pan et al. 2022, section 4.1, stage II, "convolution path".
    """
    height, width = qkv.shape[2:]
    positions = qkv.shape[1] // (3 * heads)
    maps = fc(qkv.reshape(-1, 3 * heads, positions, height * width))
    out: Tensor = dep_conv(maps.transpose(1, 2).reshape(-1, positions * fc.out_channels, height, width))
    return out


class WindowACmix(WindowAttention):
    """Window attention (with its projection) and convolution of the same queries, keys and values, weighted and added.

    (B, H, W, dim) -> (B, H, W, dim). The convolution sees the whole (shifted) map.

    Source: Pan et al. 2022, "On the Integration of Self-Attention and Convolution", arXiv:2111.14556.
    """

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__(dim, window, heads)
        self.rate1 = nn.Parameter(torch.ones(1))
        self.rate2 = nn.Parameter(torch.ones(1))
        self.fc = nn.Conv2d(3 * heads, _KERNEL**2, 1)
        positions = dim // heads
        self.dep_conv = nn.Conv2d(_KERNEL**2 * positions, dim, _KERNEL, padding=1, groups=positions, bias=False)

    def forward(self, x: Tensor, shift: int = 0) -> Tensor:
        qkv = self.qkv(x)
        attended = self.proj(self.attend(qkv, shift))
        convolved = projected_convolution(qkv.permute(0, 3, 1, 2), self.fc, self.dep_conv, self.heads)
        out: Tensor = self.rate1 * attended + self.rate2 * convolved.permute(0, 2, 3, 1)
        return out


class ACmix(nn.Module):
    """Local 7x7 attention with relative positions and a 3x3 convolution of the same projections.

    (B, channels, H, W) -> (B, out_channels, H / stride, W / stride), H and W at least 4.

    Source: Pan et al. 2022, "On the Integration of Self-Attention and Convolution", arXiv:2111.14556.
    """

    def __init__(self, channels: int, out_channels: int, stride: int, heads: int = 4, window: int = 7) -> None:
        super().__init__()
        positions = out_channels // heads
        self.heads, self.window, self.stride = heads, window, stride
        self.rate1 = nn.Parameter(torch.ones(1))
        self.rate2 = nn.Parameter(torch.ones(1))
        self.conv1 = nn.Conv2d(channels, out_channels, 1)
        self.conv2 = nn.Conv2d(channels, out_channels, 1)
        self.conv3 = nn.Conv2d(channels, out_channels, 1)
        self.conv_p = nn.Conv2d(2, positions, 1)
        self.fc = nn.Conv2d(3 * heads, _KERNEL**2, 1, bias=False)
        self.dep_conv = nn.Conv2d(
            _KERNEL**2 * positions, out_channels, _KERNEL, stride, padding=1, groups=positions, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        # The position of the query adds the same to all its logits, so softmax ignores it: only the keys' is left.
        position = self.conv_p(_coordinates(x)).repeat(1, self.heads, 1, 1)
        scale = (q.shape[1] // self.heads) ** -0.5
        attended = local_attention(q, k - position, v, self.heads, self.window, self.stride, scale)
        convolved = projected_convolution(torch.cat((q, k, v), 1), self.fc, self.dep_conv, self.heads)
        out: Tensor = self.rate1 * attended + self.rate2 * convolved
        return out


def _coordinates(x: Tensor) -> Tensor:
    """(1, 2, H, W): for every position of x's map its column and its row, each from -1 to 1."""
    height, width = x.shape[2:]
    rows, columns = (torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in (height, width))
    return torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)))[None]

# SPDX-License-Identifier: Apache-2.0
"""The FFT global filter and HorNet's global-local filter around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..norms import ChannelLayerNorm


def global_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Circular convolution of every channel with its own filter, in the frequency domain.

    irfft2(rfft2(x) * weight) with orthonormal scaling, in at least float32.

    Args:
        x: (B, C, H, W), real.
        weight: (C, h, w, 2), real and imaginary parts. Where (h, w) differs from
            (H, W // 2 + 1) it is resized: bilinear, align_corners=True.

    Returns:
        (B, C, H, W), dtype of x.

    Source: GFNet (Rao et al. 2021, section 3.2) as used by HorNet (Rao et al. 2022, appendix A).
    """
    height, width = x.shape[-2:]
    if torch.compiler.is_exporting():
        # One node with a defined meaning instead of DFT primitives that no runtime runs well;
        # export/ops/global_filter says what each target makes of it.
        exported: Tensor = torch.onnx.ops.symbolic(
            "metaformer::GlobalFilter",
            (x, weight),
            attrs={"height": height, "width": width},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
        return exported
    return fft_filter(x, weight)


def fft_filter(x: Tensor, weight: Tensor) -> Tensor:
    """`global_filter` as the plain mathematics, also while exporting."""
    height, width = x.shape[-2:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = resize_filter(weight.to(dtype), height, width // 2 + 1)
    spectrum = torch.fft.rfft2(x.to(dtype), dim=(2, 3), norm="ortho")
    filtered = spectrum * torch.view_as_complex(weight.contiguous())
    result: Tensor = torch.fft.irfft2(filtered, s=(height, width), dim=(2, 3), norm="ortho")
    return result.to(x.dtype)


def resize_filter(weight: Tensor, height: int, width: int) -> Tensor:
    """Resize a (C, h, w, 2) spectral filter to (C, height, width, 2), bilinear, align_corners=True."""
    if weight.shape[1:3] == (height, width):
        return weight
    planes = F.interpolate(weight.permute(3, 0, 1, 2), size=(height, width), mode="bilinear", align_corners=True)
    return planes.permute(1, 2, 3, 0)


class GlobalLocalFilter(nn.Module):
    """Half of the channels through a depthwise 3x3, half through the global filter, interleaved.

    (B, C, H, W) -> (B, C, H, W), C even. `filter_size` is (h, w) of the stored spectral weight:
    (H, W // 2 + 1) of the feature map it was trained at.

    Source: HorNet, "GlobalLocalFilter".
    """

    def __init__(self, channels: int, filter_size: tuple[int, int]) -> None:
        super().__init__()
        half = channels // 2
        self.dw = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.complex_weight = nn.Parameter(torch.empty(half, *filter_size, 2))
        nn.init.normal_(self.complex_weight, std=0.02)  # the authors cut it off at 100 times its spread
        self.pre_norm = ChannelLayerNorm(channels)
        self.post_norm = ChannelLayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        local, distant = self.pre_norm(x).chunk(2, dim=1)
        local = self.dw(local)
        distant = global_filter(distant, self.complex_weight)
        interleaved = torch.stack((local, distant), dim=2).flatten(1, 2)
        out: Tensor = self.post_norm(interleaved)
        return out

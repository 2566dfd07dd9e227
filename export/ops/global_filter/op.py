# SPDX-License-Identifier: Apache-2.0
"""metaformer::GlobalFilter, version 1: what the operator means.

    Y = GlobalFilter(X, weight)   attributes: height, width (int, the size of X's maps)

X is (B, C, height, width), real. weight is (C, h, w, 2), real and imaginary parts of a spectral
filter; in a traced graph h x w may be any size, and it is resized (bilinear, align_corners=True)
to height x (width // 2 + 1). Y = irfft2(rfft2(X) * weight), orthonormal, of X's shape and type,
computed in at least float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..mixer_op import DOMAIN

OP_TYPE = "GlobalFilter"
OP_ID = (DOMAIN, OP_TYPE, "")


def reference(x: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """The operator in float64: (B, C, H, W), (C, h, w, 2) -> (B, C, H, W)."""
    height, width = x.shape[-2:]
    resized = resize_filter(weight, height, width // 2 + 1)
    spectrum = np.fft.rfft2(x.astype(np.float64), norm="ortho") * (resized[..., 0] + 1j * resized[..., 1])
    result: NDArray[np.float64] = np.fft.irfft2(spectrum, s=(height, width), norm="ortho")
    return result


def resize_filter(weight: NDArray[np.floating], height: int, width: int) -> NDArray[np.float64]:
    """Resize a (C, h, w, 2) filter to (C, height, width, 2): bilinear, align_corners=True, float64.

    Source: torch.nn.functional.interpolate; the same as ONNX Resize "linear" with
    coordinate_transformation_mode "align_corners".
    """
    rows = _interpolation(weight.shape[1], height)
    columns = _interpolation(weight.shape[2], width)
    resized: NDArray[np.float64] = np.einsum(
        "yh,chwz,xw->cyxz", rows, weight.astype(np.float64), columns, optimize=True
    )
    return resized


def _interpolation(source: int, target: int) -> NDArray[np.float64]:
    """(target, source) matrix of linear interpolation with aligned corners."""
    if source == target:
        return np.eye(target)
    position = np.linspace(0, source - 1, target) if target > 1 else np.zeros(1)
    grid = np.arange(source)
    weights: NDArray[np.float64] = np.clip(1 - np.abs(position[:, None] - grid), 0, None)
    return weights

# SPDX-License-Identifier: Apache-2.0
"""metaformer::GlobalFilter -> matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder, size
from ..ops.global_filter.portable import expand_dense, expand_separable
from .lowers_global_filter import LowersGlobalFilter


@dataclass(frozen=True)
class GlobalFilterToMatmul(LowersGlobalFilter):
    """rfft2 * filter, irfft2 of a fixed H x W as matrix products: no runtime has a DFT that is as fast
    at these sizes (ONNX Runtime's takes 200 times as long). Afterwards no GlobalFilter is left.
    """

    separable_above: int = 1024  # tokens (H * W); measured: dense wins up to 32x32 at batch 8

    def expand(self, build: Builder, x: ir.Value, weight: NDArray[Any]) -> ir.Value:
        tokens = size(x, 2) * size(x, 3)
        return (expand_separable if tokens > self.separable_above else expand_dense)(build, x, weight)

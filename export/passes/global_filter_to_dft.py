# SPDX-License-Identifier: Apache-2.0
"""metaformer::GlobalFilter -> DFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ..graph import Builder
from ..ops.global_filter.native import expand_dft
from .lowers_global_filter import LowersGlobalFilter


@dataclass(frozen=True)
class GlobalFilterToDft(LowersGlobalFilter):
    """The transforms as DFT nodes, which TensorRT runs by cuFFT from 11.2 on and refuses before. ONNX Runtime
    runs them as well, hundreds of times slower than matrix products. Afterwards no GlobalFilter is left.
    """

    def expand(self, build: Builder, x: ir.Value, weight: NDArray[Any]) -> ir.Value:
        return expand_dft(build, x, weight)

# SPDX-License-Identifier: Apache-2.0
"""LayerNormalization -> the same in primitives."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .base import Pass
from .norms import find_norm, write_out


@dataclass(frozen=True)
class WriteOutLayerNorm(Pass):
    """OpenVINO runs LayerNormalization of a 16-bit file between conversions from and to float32, and in slow reorders;
    of the primitives it makes one kernel itself, which sums in float32. Factor and offset can go into the next layer.
    """

    def rewrite(self, model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.op_type == "LayerNormalization"]
        norms = [norm for node in nodes if (norm := find_norm(node)) is not None]
        for norm in norms:
            write_out(norm, centred=False)
        return len(norms)

# SPDX-License-Identifier: Apache-2.0
"""Mixer ops -> standard operators, each as its own folder says."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from ..graph import RESULT_OF, replace
from ..ops.catalog import find
from ..ops.mixer_op import DOMAIN, MixerOp
from .base import Pass


@dataclass(frozen=True)
class ExpandMixerOps(Pass):
    """Afterwards no mixer op with a portable form is left. The node that makes an operator's result says so
    in its metadata, so that a clustering's decisions can be found in the portable graph as well.
    """

    only: frozenset[str] | None = None
    """Operators to expand; None for all."""

    def rewrite(self, model: ir.Model) -> int:
        rewrites = 0
        for node in list(model.graph):
            op = self._expanded(node)
            if op is None or op.portable is None:
                continue
            result = op.portable(node)
            if (last := result.producer()) is not None:
                last.metadata_props[RESULT_OF] = op.op_type
            replace(node.outputs[0], result)
            rewrites += 1
        if rewrites:
            common.ShapeInferencePass()(model)  # the types that the precision passes go by
        return rewrites

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [n.op_type for n in graph if (op := self._expanded(n)) and op.portable]
        if left:
            return f"{', '.join(sorted(set(left)))} are left"
        untyped = next((n for n in graph for value in n.outputs if value.dtype is None), None)
        return f"{untyped.op_type} {untyped.name} has no type" if untyped else None

    def _expanded(self, node: ir.Node) -> MixerOp | None:
        """The operator that a node is, if it is to be expanded."""
        wanted = node.domain == DOMAIN and (self.only is None or node.op_type in self.only)
        return find(node.op_type) if wanted else None

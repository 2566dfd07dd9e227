# SPDX-License-Identifier: Apache-2.0
"""Drop what nothing needs: identities, dead nodes, repeated nodes and weights, exporter notes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from ..equal_weights import share_equal_weights
from ..graph import MIXER_OP, RESULT_OF, SCOPES
from .base import Pass


@dataclass(frozen=True)
class CleanUp(Pass):
    """Afterwards there is no Identity, no node or weight that nothing reads, and of torch's notes on
    nodes only the module path is left (stack traces name files of the machine that exported).
    """

    def rewrite(self, model: ir.Model) -> int:
        before = model.graph.num_nodes()
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.IdentityEliminationPass()(model)
        share_equal_weights(model.graph)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedOpsetsPass()(model)
        common.TopologicalSortPass()(model)
        for node in model.graph:
            kept = {key: text for key, text in node.metadata_props.items() if key in (SCOPES, MIXER_OP, RESULT_OF)}
            node.metadata_props.clear()
            node.metadata_props.update(kept)
            node.doc_string = None
        return before - model.graph.num_nodes()

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_type == "Identity" and not node.outputs[0].is_graph_output():
                return f"{node.name} is an Identity"
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                return f"{node.op_type} {node.name} is dead"
        unused = [name for name, value in graph.initializers.items() if not value.uses()]
        return f"weights that nothing reads: {unused}" if unused else None

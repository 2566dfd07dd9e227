# SPDX-License-Identifier: Apache-2.0
"""Names that lead back to the PyTorch module."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from ..graph import module_of
from .base import Pass

_ROLES = {
    ("Conv", 1): "weight",
    ("Conv", 2): "bias",
    ("MatMul", 1): "weight",
    ("Gemm", 1): "weight",
    ("Gemm", 2): "bias",
    ("LayerNormalization", 1): "weight",
    ("LayerNormalization", 2): "bias",
    ("GlobalFilter", 1): "complex_weight",
}
_SHARED = re.compile(r"dft\d+x\d+\.[a-z.]+")
_SPECTRAL = re.compile(r"(?:^|\.)(filter\.(?:real|imag))(?:\.|_|$)")


@dataclass(frozen=True)
class NameAfterModules(Pass):
    """Nodes are called module/Op and their outputs likewise; weights module.role, as in the state dict.
    What would be named twice gets a number: module/Op.1. The graph's inputs and outputs keep their names.
    """

    def requires(self, graph: ir.Graph) -> str | None:
        unused = [name for name, value in graph.initializers.items() if not value.uses()]
        return f"nothing says what the weight {unused[0]} is for; CleanUp goes first" if unused else None

    def rewrite(self, model: ir.Model) -> int:
        graph = model.graph
        taken = {str(value.name) for value in (*graph.inputs, *graph.outputs)}
        for node in graph:
            node.name = _unique(f"{module_of(node) or 'model'}/{node.op_type}", taken)
        names = {value: _unique(_weight_name(value), taken) for value in graph.initializers.values()}
        for node in graph:
            for i, output in enumerate(node.outputs):
                if not output.is_graph_output():
                    names[output] = str(node.name) if len(node.outputs) == 1 else f"{node.name}:{i}"
        ir.convenience.rename_values(list(names), list(names.values()))
        return len(names)

    def ensures(self, graph: ir.Graph) -> str | None:
        names = [node.name for node in graph]
        return "two nodes have one name" if len(set(names)) < len(names) else None


def _weight_name(value: ir.Value) -> str:
    hint = str(value.name)
    if shared := _SHARED.match(hint):
        return shared.group()
    use = min(value.uses(), key=lambda use: str(use.node.name))
    module = module_of(use.node) or "model"
    if spectral := _SPECTRAL.search(hint):
        return f"{module}.{spectral[1]}"
    role = _ROLES.get((use.node.op_type, use.idx), f"{use.node.op_type.lower()}_{use.idx}")
    return f"{module}.{role}"


def _unique(name: str, taken: set[str]) -> str:
    candidate, n = name, 1
    while candidate in taken:
        candidate, n = f"{name}.{n}", n + 1
    taken.add(candidate)
    return candidate

# SPDX-License-Identifier: Apache-2.0
"""Mixer ops -> nodes that TensorRT resolves to its plugins and other runtimes run as functions."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..ops.catalog import find
from ..ops.mixer_op import DOMAIN, VERSION
from .base import Pass

LOOKUP = ("plugin_namespace", "plugin_version")
"""Attributes by which TensorRT's parser finds a plugin."""


@dataclass(frozen=True)
class AttachPlugin(Pass):
    """Writes the attributes of TensorRT's plugin lookup and adds the operators' function bodies to the
    model. Afterwards every mixer op has all attributes that its plugin reads, a missing one fails there,
    in the order in which the plugin declares them: TensorRT passes them in the order that it is given.
    """

    def requires(self, graph: ir.Graph) -> str | None:
        unknown = {node.op_type for node in graph if node.domain == DOMAIN and find(node.op_type) is None}
        return f"no mixer op is called {', '.join(sorted(unknown))}" if unknown else None

    def rewrite(self, model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.domain == DOMAIN]
        for node in nodes:
            _put_in_order(node)
            node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
            node.attributes["plugin_version"] = ir.AttrString("plugin_version", str(VERSION))
            if (op := find(node.op_type)) is not None:
                body = op.function(model.opset_imports[""])
                model.functions[body.identifier()] = body
        return len(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            op = find(node.op_type) if node.domain == DOMAIN else None
            if op is not None and not {*LOOKUP, *op.attributes} <= set(node.attributes):
                return f"{node.name} lacks a plugin attribute"
            declared = _declared(node)
            if tuple(name for name in node.attributes if name in declared) != declared:
                return f"{node.name} has its plugin's attributes in another order"
        return None


def _declared(node: ir.Node) -> tuple[str, ...]:
    """Attributes that a mixer op's plugin declares, in order."""
    op = find(node.op_type)
    return () if op is None else op.attributes if op.kernel is None else tuple(op.kernel.attributes)


def _put_in_order(node: ir.Node) -> None:
    """Declared attributes go to the end, one after the other; one that is missing stays so."""
    for name in _declared(node):
        if name in node.attributes:
            node.attributes[name] = node.attributes.pop(name)

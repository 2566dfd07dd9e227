# SPDX-License-Identifier: Apache-2.0
"""Mixer ops -> nodes that TensorRT resolves to its plugins and other runtimes run as functions."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..ops import DOMAIN, VERSION
from ..ops.global_filter.function import function
from ..ops.global_filter.op import OP_ID
from .base import Pass

PLUGIN_ATTRIBUTES = ("plugin_namespace", "plugin_version", "height", "width")


@dataclass(frozen=True)
class AttachPlugin(Pass):
    """Writes every attribute that TensorRT's parser reads (plugin_namespace, plugin_version and the
    operator's own; a missing one fails there) and adds the operator's function body to the model.
    """

    def rewrite(self, model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.op_identifier() == OP_ID]
        for node in nodes:
            node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
            node.attributes["plugin_version"] = ir.AttrString("plugin_version", str(VERSION))
        if nodes:
            body = function(model.opset_imports[""])
            model.functions[body.identifier()] = body
        return len(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_identifier() == OP_ID and not all(name in node.attributes for name in PLUGIN_ATTRIBUTES):
                return f"{node.name} lacks a plugin attribute"
        return None

# SPDX-License-Identifier: Apache-2.0
"""What an engine really is, layer by layer, against what its ONNX file asks for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...export.graph import CONVERTS, module_of, producer
from ...export.precision import computes_in, count_layers, group_of
from .engine import LOW, EngineReport, FallenBack
from .layers import Layer, read_layers

if TYPE_CHECKING:
    import tensorrt as trt

_NARROWEST_FIRST = ("int8", "fp16", "bf16", "fp32")
_FLOATS = _NARROWEST_FIRST[1:]
_PRODUCTS = frozenset({"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})


@dataclass(frozen=True)
class _ComputedNode:
    """What the inspector tells of a node: the layer that computes it, and its type; "" where nothing says it."""

    layer: Layer
    got: str


def information(engine: trt.ICudaEngine, context: trt.IExecutionContext | None = None) -> str:
    """The inspector's JSON.

    Args:
        context: with the shapes of all inputs set; without one, an engine with a dynamic batch tells no types.
    """
    import tensorrt as trt

    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def examine(text: str, graph: ir.Graph) -> EngineReport:
    """Compare an engine with the graph it was built from.

    Args:
        text: the inspector's JSON.

    Raises:
        EngineError: it is no such JSON, or holds names only, as of an engine built without details.
    """
    layers, nodes = read_layers(text), {str(node.name): node for node in graph}
    wanted = {name: precision for name, node in nodes.items() if (precision := computes_in(node))}
    told = _told(layers, nodes, wanted)
    got: dict[str, Counter[str]] = defaultdict(Counter)
    computed: dict[str, Counter[str]] = defaultdict(Counter)
    for name, each in told.items():
        if each.got:
            got[group_of(nodes[name])][each.got] += 1
            computed[wanted[name]][each.got] += 1
    return EngineReport(
        layers=len(layers),
        wanted=count_layers(graph),
        got={group: dict(counts) for group, counts in got.items()},
        fallen_back=_fallen_back(told, nodes, wanted),
        reformats=sum(each.reformats for each in layers),
        casts=sum(_only_casts(each, nodes) for each in layers),
        plugins=dict(Counter(_plugin_name(each, nodes) for each in layers if each.is_plugin)),
        computed={precision: dict(counts) for precision, counts in computed.items()},
        unknown=sum(not each.got for each in told.values()),
        unexpected_casts=sum(_casts_unasked(each, nodes, wanted) for each in layers),
    )


def unexamined(graph: ir.Graph, reason: str) -> EngineReport:
    """The report of an engine whose inspector says nothing that can be read: what was asked for, and nothing else."""
    return EngineReport(layers=0, wanted=count_layers(graph), got={}, unread=reason)


def _told(layers: Sequence[Layer], nodes: Mapping[str, ir.Node], wanted: Mapping[str, str]) -> dict[str, _ComputedNode]:
    """What is told of each node that a layer names, by the node's name."""
    found: dict[str, list[_ComputedNode]] = defaultdict(list)
    for layer in layers:
        operators = [nodes[name].op_type for name in dict.fromkeys(layer.nodes) if name in nodes]
        for name in dict.fromkeys(layer.nodes):
            if name in wanted and not layer.idle:
                found[name].append(_ComputedNode(layer, _type_of(nodes[name], wanted[name], layer, operators)))
    return {name: _best(each, nodes[name]) for name, each in found.items()}


def _best(found: Sequence[_ComputedNode], node: ir.Node) -> _ComputedNode:
    """A layer that only moves or casts what a product gives names its node as well: the layer of products counts."""

    def rank(each: _ComputedNode) -> tuple[bool, bool, int]:
        order = _NARROWEST_FIRST.index(each.got) if each.got else 0
        return node.op_type in _PRODUCTS and not each.layer.multiplies, not each.got, order

    return min(found, key=rank)


def _type_of(node: ir.Node, wanted: str, layer: Layer, operators: Sequence[str]) -> str:
    """The type that a layer computes a node in: the kernel's own, else the narrowest at the layer's borders.

    A fused layer that reads float16 has no float32 kernel for it. Only a product of quantised matrices can be in
    int8; other nodes of its layer are steps on the way to the layer's output.
    """
    if wanted == "int8":
        if layer.kernel == "int8" or (not layer.kernel and "int8" in layer.read):
            return "int8"
        if _fuses_products(layer, operators) or (not layer.kernel and _quantised_inside(node, layer)):
            return ""
    seen = {layer.kernel} if layer.kernel in _FLOATS else layer.types
    floats = [each for each in _FLOATS if each in seen]
    if not floats:
        between_int8 = wanted != "int8" and "int8" in {layer.kernel, *layer.types}
        return wanted if between_int8 else ""
    if wanted == "fp32":
        return floats[-1]
    return "" if floats == ["fp32"] and _hides_types(layer, operators) else floats[0]


def _fuses_products(layer: Layer, operators: Sequence[str]) -> bool:
    """Whether a layer may quantise between products of its own, so that its borders do not tell how it multiplies."""
    products = sum(op_type in _PRODUCTS for op_type in operators)
    return not layer.kernel and (layer.partial or products > 1)


def _hides_types(layer: Layer, operators: Sequence[str]) -> bool:
    """Whether a layer with float32 at its borders may compute in another type inside."""
    return _fuses_products(layer, operators) or (not layer.kernel and "Cast" in operators)


def _quantised_inside(node: ir.Node, layer: Layer) -> bool:
    """Whether the layer quantises the node's input itself, so that int8 is nowhere at its borders."""
    dequantised = producer(node.inputs[0], "DequantizeLinear")
    quantised = producer(dequantised.inputs[0], "QuantizeLinear") if dequantised is not None else None
    return quantised is not None and str(quantised.name) in layer.nodes


def _fallen_back(
    told: Mapping[str, _ComputedNode], nodes: Mapping[str, ir.Node], wanted: Mapping[str, str]
) -> tuple[FallenBack, ...]:
    """Layers that compute in a wider type than asked, in the order of their nodes."""
    modules: dict[tuple[Layer, str, str], dict[str, None]] = defaultdict(dict)
    for name, each in told.items():
        asked = wanted[name]
        if (asked in LOW and each.got == "fp32") or (asked == "int8" and each.got in ("fp16", "bf16")):
            modules[each.layer, asked, each.got][module_of(nodes[name]) or "model"] = None
    return tuple(FallenBack(layer.name, tuple(each), asked, got) for (layer, asked, got), each in modules.items())


def _only_casts(layer: Layer, nodes: Mapping[str, ir.Node]) -> bool:
    named = [nodes[name].op_type for name in layer.nodes if name in nodes]
    return bool(named) and set(named) == {"Cast"}


def _casts_unasked(layer: Layer, nodes: Mapping[str, ir.Node], wanted: Mapping[str, str]) -> bool:
    """Whether a layer only gives another type, and is none of the file's conversions."""
    asked = any(nodes[name].op_type in CONVERTS for name in layer.nodes if name in nodes)
    computes = not layer.idle and any(name in wanted for name in layer.nodes)
    return layer.converts and not asked and not computes


def _plugin_name(layer: Layer, nodes: Mapping[str, ir.Node]) -> str:
    """The operator that a plugin layer computes; the layer's kind where it names no node of ours."""
    return next((nodes[name].op_type for name in layer.nodes if name in nodes), layer.kind)

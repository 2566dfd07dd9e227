# SPDX-License-Identifier: Apache-2.0
"""A quantised graph whose modules can be quantised one by one while it runs.

One session answers what each module's eight bits cost; to open one for each would take most of the time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import onnx_ir as ir

from ..artifacts import Converted, Lowered
from ..export.graph import MOVES_DATA, module_of, producer
from ..export.precision import float32_reasons
from .placement import PLACEMENTS, QuantizedFor
from .quantize import QUANTIZED

SWITCHES = "switches"
"""Name of the input (modules,) int64 beside the images: 1 quantises, 0 leaves in float32."""
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Switched:
    """A float32 graph with a switch for each module that holds quantised layers.

    Attributes:
        modules: by PyTorch name, in the order of the switches.
    """

    model: ir.Model
    modules: tuple[str, ...]


def switched(lowered: Lowered, quantised: Converted, target: QuantizedFor) -> Switched:
    """Let every reader of a Q/DQ pair choose between what the pair gives and what it was given.

    A layer's input and weight belong to the layer's module; its result, where that is quantised, to the same.

    Args:
        lowered: the float32 graph that was quantised, which has the weights as they were.
        quantised: for that target, float32 but for its pairs (not for TensorRT).
    """
    model = quantised.model.clone()
    graph = model.graph
    _as_in_float(graph, lowered.model.graph)
    pairs = [(node, _float_value(node, lowered.model.graph, graph)) for node in graph if node.op_type == _DQ]
    results = PLACEMENTS[target].outputs
    owners = {
        (node, use.node, use.idx): _owners(node, use.node, results)
        for node, _ in pairs
        for use in node.outputs[0].uses()
    }
    modules = tuple(dict.fromkeys(module for each in owners.values() for module in each))
    conditions = _Conditions(graph, modules)
    for node, before in pairs:
        after = node.outputs[0]
        made: dict[tuple[str, ...], ir.Value] = {}
        for use in list(after.uses()):
            own = owners[node, use.node, use.idx]
            if own not in made:
                choice = ir.node("Where", [conditions.any(own), after, before])
                choice.outputs[0].type, choice.outputs[0].shape = after.type, after.shape
                graph.insert_after(node, choice)
                made[own] = choice.outputs[0]
            use.node.replace_input_with(use.idx, made[own])
    graph.sort()
    return Switched(model, modules)


def _as_in_float(graph: ir.Graph, lowered: ir.Graph) -> None:
    """No GELU by an approximation, which a switch could not turn off."""
    exact = {node.name: node for node in lowered if node.op_type == "Gelu"}
    for node in graph:
        if node.name in exact:
            node.attributes.clear()
            node.attributes.update(exact[node.name].attributes)


def switched_to_half(lowered: Lowered) -> Switched:
    """A float32 graph whose modules can be rounded to float16 one by one: what their nodes make, and their weights.

    What stays in float32 in any case has no switch.
    """
    model = lowered.model.clone()
    graph = model.graph
    required = float32_reasons(graph)
    rounded = [node for node in graph if node not in required and node.op_type not in MOVES_DATA]
    rounded = [node for node in rounded if node.outputs[0].dtype == ir.DataType.FLOAT]
    modules = tuple(dict.fromkeys(module_of(node) or "model" for node in rounded))
    conditions = _Conditions(graph, modules)
    for node in rounded:
        condition = conditions.any((module_of(node) or "model",))
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT:
                node.replace_input_with(index, _half(graph, value, condition, node))
        output = node.outputs[0]
        uses = [(use.node, use.idx) for use in output.uses()]
        half = _half(graph, output, condition, node, after=True)
        for reader, index in uses:
            reader.replace_input_with(index, half)
        if output.is_graph_output():
            output.name, half.name = f"{output.name}.before", output.name
            graph.outputs[list(graph.outputs).index(output)] = half
    graph.sort()
    return Switched(model, modules)


def _half(graph: ir.Graph, value: ir.Value, condition: ir.Value, node: ir.Node, *, after: bool = False) -> ir.Value:
    """A value, rounded to float16 where the condition holds, made before or after a node."""
    down = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)})
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    choice = ir.node("Where", [condition, up.outputs[0], value])
    for made, dtype in ((down, ir.DataType.FLOAT16), (up, ir.DataType.FLOAT), (choice, ir.DataType.FLOAT)):
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(dtype), value.shape
    (graph.insert_after if after else graph.insert_before)(node, (down, up, choice))
    return choice.outputs[0]


def _float_value(pair: ir.Node, before: ir.Graph, graph: ir.Graph) -> ir.Value:
    """What a DequantizeLinear gives back as it was: a tensor of the graph, or a weight that is put there again."""
    source = pair.inputs[0]
    maker = None if source is None else producer(source, _Q)
    if maker is not None and maker.inputs[0] is not None:
        return maker.inputs[0]
    name = str(source.name).removesuffix(QUANTIZED) if source is not None else ""
    if name not in graph.initializers:
        weight = ir.val(name, const_value=before.initializers[name].const_value)
        weight.type, weight.shape = before.initializers[name].type, before.initializers[name].shape
        graph.register_initializer(weight)
    return graph.initializers[name]


def _owners(pair: ir.Node, reader: ir.Node, results: Collection[str]) -> tuple[str, ...]:
    """Modules that have a value quantised for a reader: that of the layer whose result it is, and the reader's."""
    source = producer(pair.inputs[0], _Q)
    maker = None if source is None or source.inputs[0] is None else source.inputs[0].producer()
    if maker is not None and maker.op_type not in results:
        maker = None
    found = [node for node in (maker, reader) if node is not None and _multiplies_eight_bits(node)]
    if not found:
        found = [reader]  # a residual addition
    return tuple(dict.fromkeys(module_of(node) or "model" for node in found))


def _multiplies_eight_bits(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "MatMul", "Gemm") and any(
        producer(value, _DQ) is not None or producer(value, "Where") is not None for value in node.inputs[:2]
    )


@dataclass(frozen=True)
class _Conditions:
    """Whether any of some modules is switched on, as values at the beginning of a graph."""

    graph: ir.Graph
    modules: tuple[str, ...]
    known: dict[tuple[str, ...], ir.Value] = field(default_factory=dict)

    def any(self, modules: tuple[str, ...]) -> ir.Value:
        if modules not in self.known:
            self.known[modules] = self._one(modules[0]) if len(modules) == 1 else self._several(modules)
        return self.known[modules]

    def _one(self, module: str) -> ir.Value:
        if self.graph.inputs[-1].name != SWITCHES:
            self.graph.inputs.append(ir.val(SWITCHES, ir.DataType.INT64, ir.Shape([len(self.modules)])))
        place = ir.val(f"{SWITCHES}.{module}", const_value=ir.tensor(np.array(self.modules.index(module))))
        self.graph.register_initializer(place)
        gathered = ir.node("Gather", [self.graph.inputs[-1], place], {"axis": 0})
        return self._first(ir.node("Cast", [self._first(gathered, ir.DataType.INT64)], {"to": int(ir.DataType.BOOL)}))

    def _several(self, modules: tuple[str, ...]) -> ir.Value:
        return reduce(lambda a, b: self._first(ir.node("Or", [a, b])), [self.any((each,)) for each in modules])

    def _first(self, node: ir.Node, dtype: ir.DataType = ir.DataType.BOOL) -> ir.Value:
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), ir.Shape([])
        self.graph.insert_before(next(iter(self.graph)), node)
        return node.outputs[0]

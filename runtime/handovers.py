# SPDX-License-Identifier: Apache-2.0
"""The values that modules of a graph hand to each other, and graphs that show them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from ..export.graph import module_of, only_reader, producer
from .clustering import lay_open
from .ranges import bytes_of

_FLOAT = ir.DataType.FLOAT
_DQ = "DequantizeLinear"


@dataclass(frozen=True)
class Handover:
    """A float value that one module makes, and another one or the caller reads.

    Attributes:
        name: of the value, in the float32 graph and in those that are made of it.
        module: path of the PyTorch module whose node makes it, "model" for the root.
        reads: the handovers that it is computed from, without others between; none is where only images go in.
        bytes: of one image, in float32.
    """

    name: str
    module: str
    reads: tuple[str, ...]
    bytes: int


def handovers(graph: ir.Graph, within: Collection[str]) -> tuple[Handover, ...]:
    """All handovers of a float32 graph, in its order.

    A module that calls others in between hands over before, between and after them.

    Args:
        within: names of the nodes whose results count; those of the graph do in any case.
    """
    found = {
        value: module_of(node) or "model"
        for node in graph
        for value in node.outputs
        if value.dtype == _FLOAT and (value.is_graph_output() or (node.name in within and _leaves(value, node)))
    }
    return tuple(
        Handover(str(value.name), module, tuple(_read(value, found)), bytes_of(value))
        for value, module in found.items()
    )


def showing(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of a graph whose outputs are these values, and the clusterings that it takes as `lay_open` gives them.

    What is computed from dequantised values and goes into a Q/DQ pair and nowhere else is shown as it is behind that:
    runtimes compute such nodes in eight bits. What none of the values needs is left out.
    """
    shown = model.clone()
    modules = lay_open(shown)
    values = {value.name: value for node in shown.graph for value in node.outputs}
    shown.graph.outputs[:] = [_after_pair(values[name]) for name in names]
    common.RemoveUnusedNodesPass()(shown)
    unused = [value for value in shown.graph.inputs if value.name in modules and not value.uses()]
    for value in unused:
        shown.graph.inputs.remove(value)
    return shown, tuple(value.name for value in shown.graph.inputs if value.name in modules)


def in_chunks(found: Sequence[Handover], images: int, budget: int) -> Iterator[tuple[Handover, ...]]:
    """Handovers in order, as many together as fit into so many bytes; at least one."""
    chunk: list[Handover] = []
    for each in found:
        if chunk and images * sum(other.bytes for other in (*chunk, each)) > budget:
            yield tuple(chunk)
            chunk = []
        chunk.append(each)
    if chunk:
        yield tuple(chunk)


def _leaves(value: ir.Value, node: ir.Node) -> bool:
    return any(module_of(use.node) != module_of(node) for use in value.uses())


def _read(value: ir.Value, found: Collection[ir.Value]) -> Iterator[str]:
    """Back through the values of the same module."""
    maker = value.producer()
    waiting = [] if maker is None else list(maker.inputs)
    seen: set[ir.Value] = set()
    while waiting:
        source = waiting.pop()
        if source is None or source in seen:
            continue
        seen.add(source)
        maker = source.producer()
        if source in found:
            yield str(source.name)
        elif maker is not None:
            waiting += maker.inputs


def _after_pair(value: ir.Value) -> ir.Value:
    """What a value is behind its Q/DQ pair, if the node that makes it computes in eight bits."""
    maker = value.producer()
    quantised = _only_reader(value, "QuantizeLinear")
    pair = None if quantised is None else _only_reader(quantised.outputs[0], _DQ)
    if maker is None or pair is None or all(producer(each, _DQ) is None for each in maker.inputs):
        return value
    return pair.outputs[0]


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    found = only_reader(value)
    return found[0] if found is not None and found[0].op_type == op_type else None

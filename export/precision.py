# SPDX-License-Identifier: Apache-2.0
"""Lowered -> Converted: cast a float32 graph to float16 or bfloat16, with islands that stay float32."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike

from ..artifacts import Converted, KeptLayer, Lowered, OutOfRange, Precision
from .graph import CONVERTS, MIXER_OP, MOVES_DATA, Builder, attribute, constant, module_of, producer
from .ops.catalog import find
from .ops.mixer_op import DOMAIN, MixerOp

FLOAT16_MAX = 65504.0
LOW_TYPES: dict[Precision, tuple[ir.DataType, DTypeLike, float]] = {
    "fp16": (ir.DataType.FLOAT16, np.float16, FLOAT16_MAX),
    "bf16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16, 3.3895e38),
}
"""ONNX type, NumPy type and largest finite value of each 16-bit precision."""
HEADROOM = 2.0
"""A value that comes within this factor of the end of the range on the sample batch stays in float32."""
FLOAT32_INPUTS = {("Resize", 2)}
"""Operator and input that ONNX has in float32 whatever the type of the data: Resize's scales."""

_FLOAT = ir.DataType.FLOAT
_NAMES = {_FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_LOW_DATA_TYPES = tuple(data_type for data_type, *_ in LOW_TYPES.values())


def convert(
    lowered: Lowered,
    precision: Precision,
    *,
    max_abs: Mapping[str, float] | None = None,
    io: Literal["fp32", "fp16"] = "fp32",
    keep: Mapping[str, str] | None = None,
) -> Converted:
    """Cast weights and activations; the lowered graph is left as it is.

    Args:
        precision: "fp32" takes the graph as it is.
        max_abs: largest magnitude of values on a sample batch, by value name; layers that come near
            the end of the type's range there stay in float32.
        io: type of the graph's inputs and outputs ("fp16" means the low type itself).
        keep: modules that stay in float32 in any case, with the reason, by PyTorch name.
    """
    if precision == "fp32":
        layers = count_layers(lowered.model.graph)
        return Converted(lowered.spec, lowered.model, lowered.form, precision, (), layers)
    model = lowered.model.clone()
    low, dtype, largest = LOW_TYPES[precision]
    reasons = _islands(model.graph, max_abs or {}, largest, keep or {})
    _cast(model.graph, set(reasons), low, dtype, keep_io=io == "fp32")
    return Converted(lowered.spec, model, lowered.form, precision, _kept(reasons), count_layers(model.graph))


def out_of_range(lowered: Lowered, max_abs: Mapping[str, float]) -> tuple[OutOfRange, ...]:
    """Inputs, weights and outputs of layers that do not fit float16 on the sample batch, in graph order."""
    graph = lowered.model.graph
    found = [
        OutOfRange("model", "input", str(value.name), max_abs[str(value.name)])
        for value in graph.inputs
        if not max_abs.get(str(value.name), 0.0) <= FLOAT16_MAX
    ]
    for node in graph:
        values = [(value, _peak(constant(value))) for value in node.inputs if value is not None]
        values += [(value, max_abs.get(str(value.name), 0.0)) for value in node.outputs]
        found += [
            OutOfRange(module_of(node) or "model", node.op_type, str(value.name), peak)
            for value, peak in values
            if not peak <= FLOAT16_MAX
        ]
    return tuple(found)


def float32_only(lowered: Lowered) -> tuple[str, ...]:
    """Mixer ops of a graph that stay in float32 in a low-precision one, each once."""
    mixers = (_mixer(node) for node in lowered.model.graph)
    return tuple(dict.fromkeys(mixer.op_type for mixer in mixers if mixer is not None and mixer.float32))


def float32_reasons(graph: ir.Graph) -> dict[ir.Node, str]:
    """Nodes that stay in float32 whatever their values are, with the reason: decisions, and what they rest on."""
    return _islands(graph, {}, math.inf, {})


def _islands(
    graph: ir.Graph, max_abs: Mapping[str, float], largest: float, keep: Mapping[str, str]
) -> dict[ir.Node, str]:
    """Nodes that stay in float32, with the reason; `largest` is the end of the low type's range."""
    reasons = {}
    wide = {name for name, value in max_abs.items() if not value * HEADROOM <= largest}
    for node in graph:
        mixer = _mixer(node)
        if mixer is not None and mixer.float32 and not _float32_inside(node, mixer):
            reasons[node] = f"{mixer.op_type}: {mixer.float32}"
        elif (made := next((v for v in node.outputs if v.name in wide), None)) is not None:
            reasons[node] = f"its output reaches {max_abs[str(made.name)]:.3g} on the sample batch"
        elif (read := next((v for v in node.inputs if v is not None and v.name in wide), None)) is not None:
            reasons[node] = f"its input reaches {max_abs[str(read.name)]:.3g} on the sample batch"
        elif any(not _peak(constant(value)) <= largest for value in node.inputs if value is not None):
            reasons[node] = "its weights are outside the range of the 16-bit type"
        elif node.op_type not in MOVES_DATA and (module_of(node) or "model") in keep:
            reasons[node] = keep[module_of(node) or "model"]
    _keep_inputs(graph, reasons)
    _bridge(graph, reasons)
    return reasons


def _mixer(node: ir.Node) -> MixerOp | None:
    """The mixer op that a node is, or was expanded from."""
    return find(node.op_type if node.domain == DOMAIN else node.metadata_props.get(MIXER_OP, ""))


def _float32_inside(node: ir.Node, mixer: MixerOp) -> bool:
    return node.domain == DOMAIN and mixer.float32_inside


def _float32_input(node: ir.Node, index: int) -> bool:
    """Whether an input is in float32 whatever the type of the data."""
    mixer = find(node.op_type) if node.domain == DOMAIN else None
    if mixer is not None and mixer.kernel is not None:
        return list(mixer.kernel.inputs.values())[index] == "fp32"
    return (node.op_type, index) in FLOAT32_INPUTS


def _keep_inputs(graph: ir.Graph, reasons: dict[ir.Node, str]) -> None:
    """What makes the inputs of an op whose inputs matter as well: back through data movement to the linear layers."""
    for node in reversed(list(graph)):
        mixer = _mixer(node)
        if mixer is not None and mixer.float32_inputs:
            for value in node.inputs:
                _keep_makers(value, f"it makes the input of {mixer.op_type}", reasons)


def _keep_makers(value: ir.Value | None, reason: str, reasons: dict[ir.Node, str]) -> None:
    node = None if value is None or value.dtype != _FLOAT else value.producer()
    if node is None or node in reasons:
        return
    biased = node.op_type == "Add" and any(constant(source) is not None for source in node.inputs)
    if biased or node.op_type in (*MOVES_DATA, "MatMul", "Gemm", "Conv"):
        reasons[node] = reason
    if biased or node.op_type in MOVES_DATA:
        for source in node.inputs:
            _keep_makers(source, reason, reasons)


def _peak(array: np.ndarray | None) -> float:
    """Largest magnitude of a float32 constant, 0 for anything else."""
    return float(np.abs(array).max(initial=0)) if array is not None and array.dtype == np.float32 else 0.0


def _bridge(graph: ir.Graph, reasons: dict[ir.Node, str]) -> None:
    """Data movement between islands joins them: a cast down and up again would gain nothing."""
    bridges = {node for node in graph if node.op_type in MOVES_DATA and node not in reasons}
    wide, unsure = bridges | set(reasons), list(bridges)
    while unsure:
        node = unsure.pop()
        if node in bridges and not _between(node, wide):
            bridges.remove(node)
            wide.remove(node)
            unsure += _neighbours(node)
    reasons.update({node: "between layers that stay in float32" for node in graph if node in bridges})


def _neighbours(node: ir.Node) -> list[ir.Node]:
    """Nodes that make what it reads or read what it makes."""
    makers = [value.producer() for value in node.inputs if value is not None]
    return [*filter(None, makers), *(use.node for output in node.outputs for use in output.uses())]


def _between(node: ir.Node, wide: set[ir.Node]) -> bool:
    """Whether all float inputs of a node are made, and all its outputs read, by nodes of the set only."""
    sources = [v.producer() for v in node.inputs if v is not None and v.dtype == _FLOAT and constant(v) is None]
    readers = [use.node for output in node.outputs for use in output.uses()]
    if not sources or not readers or any(output.is_graph_output() for output in node.outputs):
        return False
    return all(each in wide for each in (*sources, *readers))


def _cast(graph: ir.Graph, islands: set[ir.Node], low: ir.DataType, dtype: DTypeLike, *, keep_io: bool) -> None:
    """Set the type of every float value and cast where a node needs another type than its input has."""
    nodes = [node for node in graph if not _casts_to_float(node)]
    floats = {v for node in graph for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == _FLOAT}
    weights = {value for value in floats if value.is_initializer()}
    lowered = {output for node in nodes if node not in islands for output in node.outputs}
    for value in lowered & floats | (set() if keep_io else set(graph.inputs) & floats):
        value.type = ir.TensorType(low)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in nodes:
        wanted = _FLOAT if node in islands else low
        for index, source in enumerate(node.inputs):
            if source is None or source not in floats or source.dtype == wanted:
                continue
            if _float32_input(node, index):
                continue
            if (source, wanted) not in casts:
                make = partial(_low_weight, dtype=dtype) if source in weights else partial(_cast_before, to=wanted)
                casts[source, wanted] = make(node, source)
            node.replace_input_with(index, casts[source, wanted])
    _drop_unused_weights(graph, weights, {old: new for (old, _), new in casts.items()})
    _cast_outputs(graph, _FLOAT if keep_io else low)


def _drop_unused_weights(graph: ir.Graph, weights: set[ir.Value], low: Mapping[ir.Value, ir.Value]) -> None:
    """Remove float32 weights that only their low-precision copies replaced, and give those their names."""
    for weight in list(graph.initializers.values()):  # in their order, so that the file is the same every time
        if weight in weights and not weight.uses():
            name = str(weight.name)
            del graph.initializers[name]
            low[weight].name = name


def _quantised(node: ir.Node) -> bool:
    """Whether a layer multiplies dequantised values, which a runtime takes as they were before."""
    return node.op_type in ("Conv", "MatMul", "Gemm") and all(
        producer(value, "DequantizeLinear") is not None for value in node.inputs[:2]
    )


def _casts_to_float(node: ir.Node) -> bool:
    return node.op_type == "Cast" and attribute(node, "to") == _FLOAT


def _low_weight(node: ir.Node, value: ir.Value, dtype: DTypeLike) -> ir.Value:
    array = constant(value)
    if array is None:
        raise ValueError(f"{value.name} has no value")
    return Builder(node).constant(f"{value.name}.low", array.astype(dtype))


def _cast_before(node: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
    cast = Builder(node).node("Cast", [value], {"to": int(to)})
    cast.name = f"{value.name}/Cast.{to.name.lower()}"
    output = cast.outputs[0]
    output.name, output.shape, output.type = cast.name, value.shape, ir.TensorType(to)
    return output


def _cast_outputs(graph: ir.Graph, wanted: ir.DataType) -> None:
    """Give graph outputs the wanted type under their old names."""
    for index, value in enumerate(list(graph.outputs)):
        node = value.producer()
        if value.dtype == wanted or value.dtype not in (_FLOAT, *_LOW_DATA_TYPES) or node is None:
            continue
        name, value.name = value.name, f"{value.name}.before_cast"
        cast = ir.node(
            "Cast", [value], {"to": int(wanted)}, name=f"{name}/Cast", metadata_props=dict(node.metadata_props)
        )
        cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
        cast.outputs[0].type = ir.TensorType(wanted)
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]


def _kept(reasons: Mapping[ir.Node, str]) -> tuple[KeptLayer, ...]:
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node, reason in reasons.items():
        grouped[module_of(node) or "model", reason].append(node.op_type)
    return tuple(KeptLayer(module, tuple(ops), reason) for (module, reason), ops in grouped.items())


def count_layers(graph: ir.Graph) -> dict[str, dict[str, int]]:
    """Nodes with arithmetic, by the type they compute in, for each group of modules ("stages.2")."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for node in graph:
        if computed_in := computes_in(node):
            groups[group_of(node)][computed_in] += 1
    return {group: dict(counts) for group, counts in groups.items()}


def computes_in(node: ir.Node) -> str:
    """The type of a node with arithmetic, "int8" where both its matrices are quantised; "" for other nodes."""
    if node.op_type in (*MOVES_DATA, *CONVERTS) or node.outputs[0].dtype not in _NAMES:
        return ""
    return "int8" if _quantised(node) else _NAMES[node.outputs[0].dtype]


def group_of(node: ir.Node) -> str:
    """ "stages.2" of a node of "stages.2.blocks.0.mixer"."""
    return ".".join(module_of(node).removeprefix("backbone.").split(".")[:2]) or "model"

# SPDX-License-Identifier: Apache-2.0
"""Graphs that tell what happens inside: largest magnitudes, and 16-bit rounding made visible on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..artifacts import Converted, Lowered
from ..export.graph import MOVES_DATA
from ..export.serialize import taken_apart
from .onnxruntime import open_session

_FLOAT = ir.DataType.FLOAT
_LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def largest_magnitudes(lowered: Lowered, batch: NDArray[np.float32], threads: int) -> dict[str, float]:
    """max |value| of every float32 input and value that a node makes, over a batch (B, C, H, W); by name."""
    model = lowered.model.clone()
    graph = model.graph
    nodes = list(graph)
    observed = [(value, nodes[0], graph.insert_before) for value in graph.inputs]
    observed += [(v, node, graph.insert_after) for node in nodes for v in node.outputs if v.dtype == _FLOAT]
    peaks = []
    for value, place, insert in observed:
        magnitude = ir.node("Abs", [value])
        peak = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        lifted = ir.node("Reshape", [peak.outputs[0], _shape_of_one(graph)])
        insert(place, (magnitude, peak, lifted))  # at once, so that the value need not be kept
        peaks.append(lifted.outputs[0])
    joined = ir.node("Concat", peaks, {"axis": 0})
    graph.append(joined)
    joined.outputs[0].name = "peaks"
    joined.outputs[0].type = ir.TensorType(_FLOAT)
    graph.outputs[:] = [joined.outputs[0]]
    session = open_session(taken_apart(model), threads=threads, fuse=False)
    highest = np.max([session(image[None])[0] for image in batch], axis=0)
    return {str(value.name): float(peak) for (value, *_), peak in zip(observed, highest, strict=True)}


def rounded(converted: Converted) -> ir.Model:
    """The low-precision graph as float32 arithmetic in which every tensor is rounded to its type.

    ONNX Runtime's CPU runs a float16 graph through casts and then drops the casts between two
    layers: activations keep float32's accuracy and range, so that a value that overflows on a GPU
    passes unseen. Its CPU has no bfloat16 arithmetic at all. Here every value goes through its own
    type, as it does in a GPU's memory; sums inside a layer are float32, as on tensor cores.
    """
    model = converted.model.clone()
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype in _LOW and value.const_value is not None:
            # Made when it is read: the graph, whose nodes refer to each other, would keep it beyond its session.
            wide, shape = partial(_widened_weight, value.const_value), ir.Shape(value.const_value.shape.numpy())
            value.const_value = ir.LazyTensor(wide, _FLOAT, shape, name=value.name)
            value.type = ir.TensorType(_FLOAT)
    nodes = list(graph)
    for value in graph.inputs:
        if value.dtype in _LOW:
            to_low = int(value.dtype)
            value.type = ir.TensorType(_FLOAT)
            readers = tuple(value.uses())
            down = ir.node("Cast", [value], {"to": to_low})
            up = _widened(down, value)
            graph.insert_before(nodes[0], (down, up))
            _redirect(readers, up.outputs[0])
    for node in nodes:
        for output in node.outputs:
            if output.dtype in _LOW:
                _round(graph, node, output)
    return model


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    low = output.dtype
    if node.op_type in MOVES_DATA:
        output.type = ir.TensorType(_FLOAT)
        return
    readers = tuple(output.uses())
    to_low = int(low or _FLOAT)
    if node.op_type == "Cast":
        down = node
    else:
        output.type = ir.TensorType(_FLOAT)
        down = ir.node("Cast", [output], {"to": to_low})
        graph.insert_after(node, down)
    up = _widened(down, output)
    graph.insert_after(down, up)
    _redirect(readers, up.outputs[0])
    if output.is_graph_output():
        name, output.name = output.name, f"{output.name}.rounded"
        up.outputs[0].name = name
        graph.outputs[list(graph.outputs).index(output)] = up.outputs[0]


def _widened_weight(low: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(low.numpy().astype(np.float32))


def _widened(cast_down: ir.Node, like: ir.Value) -> ir.Node:
    """A cast to float32 again, after one to the low type; not in a graph yet."""
    node = ir.node("Cast", cast_down.outputs, {"to": int(_FLOAT)})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(_FLOAT), like.shape
    return node


def _redirect(readers: tuple[Any, ...], value: ir.Value) -> None:
    for use in readers:
        use.node.replace_input_with(use.idx, value)


def _shape_of_one(graph: ir.Graph) -> ir.Value:
    name = "observe.shape_of_one"
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(np.array([1], np.int64), name=name)))
    return graph.initializers[name]

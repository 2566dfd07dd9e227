# SPDX-License-Identifier: Apache-2.0
"""Residual additions: which there are, and a Q/DQ pair on one of the branches that they add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from ..export.graph import MIXER_OP, MOVES_DATA, Builder, computed_and_constant, constant
from .placement import LAYERS, SMALLEST_RANGE

Residual = tuple[ir.Node, int, ir.Value]
"""An addition x + f(x), which of its inputs is f(x), and the value."""
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


def residual_additions(graph: ir.Graph) -> Iterator[Residual]:
    """Additions outside of mixer ops, where x may have gone through a factor or a 1x1 convolution of its own."""
    place = {node: i for i, node in enumerate(graph)}
    for node in graph:
        if (
            node.op_type != "Add"
            or MIXER_OP in node.metadata_props
            or any(value is None or constant(value) is not None for value in node.inputs)
        ):
            continue
        for index in (0, 1):
            stream, branch = node.inputs[index], node.inputs[1 - index]
            if stream is None or branch is None:
                continue
            if any(_comes_from(branch, source, place) for source in _along_shortcut(stream)):
                yield node, 1 - index, branch
                break


def layers_behind(value: ir.Value | None) -> set[ir.Node]:
    """Layers whose results a value is, moved, with constants added or multiplied, or added to each other.

    An addition joins the layer that makes f(x), and reads bytes in its place. Where no layer in eight bits makes it, as
    in PoolFormer's mixers, a pair would only add an error: 1.9 % instead of 1.3 % on digits.
    """
    node = None if value is None else value.producer()
    if node is None or node.op_type in LAYERS:
        return set() if node is None else {node}
    if node.op_type == "Mul" and computed_and_constant(node, "Mul")[0] is None:
        return set()
    sources = node.inputs if node.op_type in ("Add", "Mul") else node.inputs[:1] if node.op_type in MOVES_DATA else ()
    return set().union(*map(layers_behind, sources))


def quantize_residuals(
    graph: ir.Graph, additions: Iterable[Residual], ranges: Mapping[str, tuple[float, float]]
) -> None:
    """Put a Q/DQ pair on f(x) of additions x + f(x), in place.

    On x, as is advised where the sum is quantised again (ResNet), it would cost more, because x is requantised in every
    block: the error of the small trained models is 3 to 16 % lower so.

    Args:
        additions: of the graph as it was before other pairs were inserted.
        ranges: of f(x), by name.
    """
    nodes = {node.name: node for node in graph}
    for found, index, value in additions:
        node = nodes[found.name]
        branch = node.inputs[index]
        if branch is None:
            continue
        low, high = ranges[str(value.name)]
        builder = Builder(node)
        name = f"{node.name}/residual"
        scale = builder.constant(f"{name}_scale", np.array(max(-low, high, SMALLEST_RANGE / 2) / 127, np.float32))
        zero = builder.constant(f"{name}_zero_point", np.array(0, np.int8))
        quantised = builder.node(_Q, [branch, scale, zero])
        quantised.outputs[0].type, quantised.outputs[0].shape = ir.TensorType(ir.DataType.INT8), branch.shape
        pair = builder.node(_DQ, [quantised.outputs[0], scale, zero], like=branch)
        for made, suffix in ((quantised, _Q), (pair, _DQ)):
            made.name = f"{name}_{suffix}"
            made.outputs[0].name = f"{name}_{suffix}_Output"
        node.replace_input_with(index, pair.outputs[0])


def _along_shortcut(value: ir.Value) -> Iterator[ir.Value]:
    """A value, and what it was before factors and 1x1 convolutions, back to the first."""
    while True:
        yield value
        node = value.producer()
        source = None if node is None else node.inputs[0]
        if node is None or source is None or constant(node.inputs[-1]) is None:
            return
        weight = constant(node.inputs[1]) if node.op_type in ("Mul", "Conv") else None
        if weight is None or (node.op_type == "Conv" and weight.shape[2:] != (1, 1)):
            return
        value = source


def _comes_from(value: ir.Value, source: ir.Value, place: Mapping[ir.Node, int]) -> bool:
    """Whether a value is computed from another one, which is no older than that."""
    maker = source.producer()
    oldest = -1 if maker is None else place[maker]
    waiting, seen = [value], set()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen or place[node] <= oldest:
            continue
        seen.add(node)
        for each in node.inputs:
            if each is source:
                return True
            if each is not None:
                waiting.append(each)
    return False

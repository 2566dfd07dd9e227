# SPDX-License-Identifier: Apache-2.0
"""Residual streams of a graph that only norms read, and what writes to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from ..graph import attribute, constant, permutation, producer
from .base import no_match
from .norms import Norm, find_norm

_LEAST_NORMS = 2
"""Norms of a stream for each mean that has to be subtracted from what it is made of."""


def streams(graph: ir.Graph) -> Iterator[Stream]:
    """Those of which nothing but norms sees the mean over the channels, each once."""
    by_value: dict[ir.Value, list[Norm]] = {}
    for norm in filter(None, map(find_norm, graph)):
        by_value.setdefault(norm.x, []).append(norm)
    seen: set[ir.Value] = set()
    for value, norms in by_value.items():
        if value not in seen:
            stream = Stream(by_value)
            whole = stream.follow(value, norms[0].axis)
            seen |= set(stream.axis_of)
            if whole:
                yield stream


def sums_that_only_norms_read(graph: ir.Graph) -> set[ir.Node]:
    """The Add nodes of residual streams with norms enough for the means that would be subtracted from them."""
    found = (stream for stream in streams(graph) if stream.enough_norms())
    return {node for stream in found for value in stream.axis_of if (node := producer(value, "Add")) is not None}


@dataclass
class Stream:
    """Values that are one residual stream: connected by sums and by what leaves channels in place.

    Attributes:
        norms_of: all norms of the graph by what they read.
        axis_of: the values of the stream, and where each has its channels.
        norms: those that read it.
        layers: results of layers with weights that are added to it.
        starts: everything else that it is made of.
    """

    norms_of: dict[ir.Value, list[Norm]]
    axis_of: dict[ir.Value, int] = field(default_factory=dict)
    norms: list[Norm] = field(default_factory=list)
    layers: list[ir.Value] = field(default_factory=list)
    starts: list[ir.Value] = field(default_factory=list)

    def follow(self, value: ir.Value, axis: int) -> bool:
        """Collect the stream that the value belongs to; False if anything but a norm sees its mean."""
        unseen = [(value, axis)]
        while unseen:
            value, axis = unseen.pop()
            if value in self.axis_of:
                if self.axis_of[value] != axis:
                    return False
                continue
            self.axis_of[value] = axis
            if value.is_graph_output() or value.shape is None:
                return False
            unseen += self._sources(value, axis)
            norms = [norm for norm in self.norms_of.get(value, []) if norm.axis == axis]
            self.norms += norms
            part_of_norms = {reader for norm in norms for reader in norm.readers}
            for use in value.uses():
                if use.node in part_of_norms:
                    continue
                passed = _passed_on(use.node, value, axis)
                if passed is None:
                    no_match("not only norms read the stream", use.node)
                    return False
                unseen.append((use.node.outputs[0], passed))
        return True

    def _sources(self, value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
        """What the value is a sum or a rearrangement of; a value that is neither is a layer's, or a start."""
        node = value.producer()
        if layer_of(value, axis) is not None:
            self.layers.append(value)
            return
        sources = [] if node is None else [v for v in node.inputs if v is not None and constant(v) is None]
        back = None if node is None else _passed_back(node, axis)
        if node is None or back is None or not sources:
            self.starts.append(value)
            return
        yield from ((source, back) for source in sources)

    def has_channels_first_sums(self) -> bool:
        """Whether it is summed as (B, C, H, W) maps."""
        return any(axis == 1 and producer(value, "Add") is not None for value, axis in self.axis_of.items())

    def enough_norms(self) -> bool:
        """Whether several norms gain for each mean that has to be subtracted."""
        return len(self.norms) >= _LEAST_NORMS * len(self.starts)


def _passed_on(node: ir.Node, value: ir.Value, axis: int) -> int | None:
    """The axis of the channels in the node's output, None if they do not pass it one by one."""
    back = None if node.domain != "" else _moved(node, axis, forward=True)
    if back is None or (node.op_type in ("Add", "Concat") and any(constant(each) is not None for each in node.inputs)):
        return None
    return back if node.inputs[0] is value or node.op_type in ("Add", "Concat") else None


def _passed_back(node: ir.Node, axis: int) -> int | None:
    if node.domain != "" or (node.op_type in ("Add", "Concat") and any(constant(v) is not None for v in node.inputs)):
        return None
    return _moved(node, axis, forward=False)


def _moved(node: ir.Node, axis: int, *, forward: bool) -> int | None:
    """Where a node takes the channels from input to output (or from where it has them), if it leaves each as it is."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None:
        return None
    if node.op_type == "Add":
        same = all(each is not None and each.shape == y.shape for each in node.inputs)
        return axis if same else None
    if node.op_type == "Transpose":
        order = permutation(node)
        return order.index(axis) if forward else order[axis]
    if node.op_type == "Reshape":
        here, there = (x, y) if forward else (y, x)
        if here.shape is None or there.shape is None:
            return None
        last = axis == len(here.shape) - 1 and here.shape[-1] == there.shape[-1]
        second = axis == 1 and list(here.shape[:2]) == list(there.shape[:2])
        return len(there.shape) - 1 if last else 1 if second else None
    if node.op_type == "Concat":
        return axis if attribute(node, "axis") % len(y.shape) != axis else None
    if node.op_type == "Slice":
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return axis if axes is not None and axis not in [int(each) % len(y.shape) for each in axes] else None
    if node.op_type == "GlobalAveragePool":
        return axis if axis == 1 else None
    return _past_mean(node, len(x.shape), axis, forward=forward) if node.op_type == "ReduceMean" else None


def _past_mean(node: ir.Node, rank: int, axis: int, *, forward: bool) -> int | None:
    """Likewise for a mean over other axes, which may disappear."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        return None
    gone = {int(each) % rank for each in axes}
    kept = [each for each in range(rank) if attribute(node, "keepdims", 1) == 1 or each not in gone]
    if forward:
        return None if axis in gone else kept.index(axis)
    return None if kept[axis] in gone else kept[axis]


def layer_of(value: ir.Value, axis: int) -> ir.Node | None:
    """The Conv or MatMul with constant weights, or the sum of one with its bias, whose outputs are the channels."""
    node = value.producer()
    if node is None or node.domain != "" or value.shape is None:
        return None
    if node.op_type == "Add":
        for layer, bias in (node.inputs, node.inputs[::-1]):
            product, numbers = producer(layer, "MatMul"), constant(bias)
            if product is not None and numbers is not None and numbers.ndim == 1 and layer is not None:
                return node if len(layer.uses()) == 1 and layer_of(layer, axis) is not None else None
        return None
    weights = [constant(each) for each in node.inputs[1:] if each is not None]
    if not weights or any(each is None for each in weights):
        return None
    if node.op_type == "Conv":
        return node if axis == 1 and attribute(node, "group", 1) == 1 else None  # each group sees its own inputs
    two = weights[0] is not None and weights[0].ndim == 2
    return node if node.op_type == "MatMul" and two and axis == len(value.shape) - 1 else None

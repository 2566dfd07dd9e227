# SPDX-License-Identifier: Apache-2.0
"""Equalisation: channels of very different ranges waste the eight bits that they share, and factors make them alike.

A tensor's channels are divided by powers of two, folded into what makes it (a convolution's filters, the scale of a
layer norm, one factor of a gate), and the weights of all layers that read it are multiplied by them: the float graph
computes the same bits. Between layer norm and linear layers this is SmoothQuant's scaling (Xiao et al., 2023), between
two convolutions cross-layer equalisation (Nagel et al., 2019); here the strength is chosen for each tensor by what
eight bits leave behind the layers that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..artifacts import Lowered
from ..export.graph import Builder, attribute, constant, only_use, permutation, producer
from .thresholds import BINS, Histogram

Exponents = Mapping[str, Sequence[int]]
"""Of two, by the name of a tensor: what each of its channels is divided by."""
FindRange = Callable[[Histogram], tuple[float, float]]
_LINEAR = ("Conv", "MatMul", "Gemm")
_STRENGTHS = (0.25, 0.5, 0.75, 1.0)
_WORTH = 0.9
"""Share of the error that may be left for a tensor to be equalised."""
_MOST = 8
"""Largest exponent: channels that are all but dead are not blown up."""


@dataclass(frozen=True)
class Place:
    """A tensor whose channels can be scaled.

    Attributes:
        tensor: what `source` makes, or the gate that it is a factor of.
        axis: of its channels.
        source: takes the factors: a convolution, or a layer norm; of a gate the convolution that makes one factor.
        readers: linear layers that take their inverse.
    """

    tensor: ir.Value
    axis: int
    source: ir.Node
    readers: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """Of the tensor."""
        return str(self.tensor.name)


@dataclass(frozen=True)
class Samples:
    """What the channels of a tensor are at some places of some images.

    Attributes:
        rows: (R, C).
        factor: of a gate the result of the convolution that is its source, likewise; None elsewhere.
    """

    rows: NDArray[np.float32]
    factor: NDArray[np.float32] | None = None


def places(graph: ir.Graph) -> Iterator[Place]:
    """Every tensor of a graph whose channels can be scaled without a trace."""
    for node in graph:
        found = _source(node)
        if found is None:
            continue
        source, axis = found
        readers = _absorbing(node.outputs[0], axis)
        if readers:
            yield Place(node.outputs[0], axis, source, tuple(readers))


def exponents_for(place: Place, samples: Samples, find: FindRange, weight_bits: int = 8) -> tuple[int, ...] | None:
    """What to divide the channels of a tensor by; None where that does not help behind the layers that read it.

    Args:
        find: how the range of a quantised tensor is chosen.
    """
    width = np.maximum(np.abs(samples.rows).max(0), 1e-12)
    weights = [_columns(node) for node in place.readers]
    reach = np.maximum(np.max([np.abs(each).max(0) for each in weights], axis=0), 1e-12)
    wanted = [width**strength for strength in _STRENGTHS]
    wanted += [width**strength / reach ** (1 - strength) for strength in _STRENGTHS]
    found: dict[tuple[int, ...], float] = {}
    for factors in wanted:
        powers = np.rint(np.log2(factors / np.exp(np.log(factors).mean()))).clip(-_MOST, _MOST)
        exponents = tuple(int(each) for each in powers)
        if exponents not in found:
            found[exponents] = _error(2.0**powers, samples, weights, find, weight_bits)
    plain = _error(np.ones_like(width), samples, weights, find, weight_bits)
    best = min(found, key=lambda each: found[each])
    return best if found[best] < _WORTH * plain else None


def equalized(lowered: Lowered, exponents: Exponents) -> Lowered:
    """A copy of the graph with the channels of these tensors scaled; names of tensors stay.

    Raises:
        KeyError: a tensor is not among `places` of the graph.
    """
    model = lowered.model.clone()
    found = {place.name: place for place in places(model.graph)}
    for name, powers in exponents.items():
        _apply(found[name], 2.0 ** np.asarray(powers, np.float64))
    return Lowered(lowered.spec, model, lowered.form, lowered.passes)


def _source(node: ir.Node) -> tuple[ir.Node, int] | None:
    """What can take factors for the channels of a node's result, and their axis."""
    if node.op_type == "Conv":
        return (node, 1) if _constants(node, 1, 2) else None
    if node.op_type == "LayerNormalization":
        shape = node.outputs[0].shape
        last = attribute(node, "axis", -1) in (-1, len(shape or ()) - 1)
        return (node, len(shape) - 1) if shape is not None and last and _constants(node, 1, 2) else None
    if node.op_type == "Mul":
        for value, other in (node.inputs, reversed(node.inputs)):
            conv = producer(value, "Conv")
            if conv is not None and value is not None and only_use(value) and _constants(conv, 1, 2):
                same = other is not None and other.shape is not None and other.shape == value.shape
                return (conv, 1) if same else None
    return None


def _constants(node: ir.Node, *indices: int) -> bool:
    """Whether those inputs, as far as the node has them, are constants."""
    held = [node.inputs[i] for i in indices if i < len(node.inputs) and node.inputs[i] is not None]
    return all(constant(value) is not None for value in held)


def _absorbing(value: ir.Value, axis: int) -> list[ir.Node] | None:
    """The linear layers that are all that reads a value, through transposes and ReLUs; None if something else does."""
    if value.is_graph_output():
        return None
    found: list[ir.Node] = []
    for use in value.uses():
        node = use.node
        if node.op_type in ("Transpose", "Relu"):
            further = _absorbing(
                node.outputs[0], permutation(node).index(axis) if node.op_type == "Transpose" else axis
            )
            if further is None:
                return None
            found += further
        elif use.idx == 0 and _reads_channels(node, value, axis):
            found.append(node)
        else:
            return None
    return found


def _reads_channels(node: ir.Node, value: ir.Value, axis: int) -> bool:
    """Whether a linear layer's weight has a column for each channel on that axis of its input."""
    weight = constant(node.inputs[1]) if node.op_type in _LINEAR else None
    if weight is None:
        return False
    if node.op_type == "Conv":
        depthwise = weight.shape[1] == 1 and attribute(node, "group", 1) == weight.shape[0]
        return axis == 1 and (depthwise or attribute(node, "group", 1) == 1)
    last = value.shape is not None and axis == len(value.shape) - 1
    return last and weight.ndim == 2 and attribute(node, "transA", 0) == 0


def _channel_axis(node: ir.Node, weight: NDArray[np.float32]) -> int:
    """Of a reader's weight."""
    if node.op_type == "Conv":
        return 1 if attribute(node, "group", 1) == 1 else 0
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0


def _columns(node: ir.Node) -> NDArray[np.float64]:
    """A reader's weight as (rows, channels): what a channel is multiplied by, a row for each output and place."""
    weight = constant(node.inputs[1])
    if weight is None:
        raise ValueError(f"{node.name} has no constant weight")
    moved = np.moveaxis(np.asarray(weight, np.float64), _channel_axis(node, weight), -1)
    return moved.reshape(-1, moved.shape[-1])


def _error(
    factors: NDArray[np.float64],
    samples: Samples,
    weights: Sequence[NDArray[np.float64]],
    find: FindRange,
    weight_bits: int,
) -> float:
    """What eight bits leave behind the layers that read a tensor: sums of squares over those of the results."""
    rows = samples.rows / factors
    if samples.factor is not None:  # quantised before it is multiplied, on the CPU
        before = samples.factor / factors
        other = np.divide(samples.rows, samples.factor, out=np.zeros_like(rows), where=samples.factor != 0)
        rows = other * _rounded(before, find)
    rows = _rounded(rows, find)
    found = 0.0
    for weight in weights:
        steps = np.maximum(np.abs(weight * factors).max(1, keepdims=True), 1e-12) / (2 ** (weight_bits - 1) - 1)
        want = samples.rows @ weight.T
        got = rows @ (np.rint(weight * factors / steps) * steps).T
        found += float(((got - want) ** 2).sum() / max((want**2).sum(), 1e-12))
    return found


def _rounded(values: NDArray[np.float64], find: FindRange) -> NDArray[np.float64]:
    """To unsigned bytes between the ends of their range."""
    low, high = float(values.min()), float(values.max())
    counts = np.histogram(values, BINS, (low, high))[0] if high > low else np.bincount([0], minlength=BINS)
    low, high = find(Histogram(counts.astype(np.int64), low, high))
    step = max(max(high, 0.0) - min(low, 0.0), 1e-12) / 255
    zero = np.rint(-min(low, 0.0) / step)
    rounded: NDArray[np.float64] = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    return rounded


def _apply(place: Place, factors: NDArray[np.float64]) -> None:
    source = place.source
    for index in (1, 2):
        if index < len(source.inputs) and source.inputs[index] is not None:
            _scale(source, index, 1 / factors, 0)
    for node in place.readers:
        weight = constant(node.inputs[1])
        if weight is not None:
            _scale(node, 1, factors, _channel_axis(node, weight))


def _scale(node: ir.Node, index: int, factors: NDArray[np.float64], axis: int) -> None:
    """Multiply a weight along an axis, for this node alone."""
    value = node.inputs[index]
    array = constant(value)
    if value is None or array is None:
        return
    shape = [1] * array.ndim
    shape[axis] = -1
    scaled = (array * factors.reshape(shape)).astype(array.dtype)
    if len(value.uses()) == 1:
        value.const_value = ir.tensor(np.ascontiguousarray(scaled), name=value.name)
    else:
        node.replace_input_with(index, Builder(node).constant(str(value.name), scaled))

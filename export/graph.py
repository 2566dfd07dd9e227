# SPDX-License-Identifier: Apache-2.0
"""Reading and rewriting ONNX graphs: the few operations that the passes share."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

SCOPES = "pkg.torch.onnx.name_scopes"
"""Key under which torch's exporter keeps a node's module path, outermost first, then the call."""
MIXER_OP = "metaformer.mixer_op"
"""Key under which a node says which mixer op it was expanded from."""
RESULT_OF = "metaformer.result_of"
"""Key under which the node that makes a mixer op's result says which op that was."""

MOVES_DATA = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators without arithmetic: exact in any type."""
CONVERTS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
"""Operators that only give another type."""


def module_of(node: ir.Node) -> str:
    """Path of the PyTorch module that a node comes from, for instance "stages.2.0.gnconv"; "" for the root."""
    return _module_of(node.metadata_props.get(SCOPES, "[]"))


@cache
def _module_of(scopes: str) -> str:
    """Passes ask for it again and again, and reading the list takes longer than all else that they do with a node."""
    path = ast.literal_eval(scopes)
    return str(path[-2]) if len(path) > 1 else ""


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initializer or a Constant node, None if the value is computed."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The standard-domain node of that type that makes the value, or None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type == op_type else None


def computed_and_constant(node: ir.Node | None, op_type: str) -> tuple[ir.Value | None, ir.Value | None]:
    """The two operands of a commutative node of that type, computed one first; (None, None) if it is no such node."""
    if node is None or node.domain != "" or node.op_type != op_type:
        return None, None
    first, second = node.inputs
    for computed, number in ((first, second), (second, first)):
        if constant(number) is not None and constant(computed) is None:
            return computed, number
    return None, None


def permutation(transpose: ir.Node) -> tuple[int, ...]:
    """Axes of a Transpose; without the attribute they are reversed."""
    rank = len(transpose.inputs[0].shape) if transpose.inputs[0] is not None and transpose.inputs[0].shape else 0
    return tuple(attribute(transpose, "perm", tuple(reversed(range(rank)))))


def only_use(value: ir.Value) -> bool:
    """Whether exactly one node input reads the value, and no graph output is it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def only_reader(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The node that alone reads the value, and as which input; None where there are more or it is a graph output."""
    if not only_use(value):
        return None
    (use,) = value.uses()
    return use.node, use.idx


def size(value: ir.Value, axis: int) -> int:
    """Static length of one axis; raises ValueError where it is dynamic or unknown."""
    length = None if value.shape is None else value.shape[axis]
    if not isinstance(length, int):
        raise ValueError(f"axis {axis} of {value.name} is not static")
    return length


def float_type(value: ir.Value) -> np.dtype[Any]:
    """float64 for a value of that type, float32 for any other."""
    return np.dtype(np.float64 if value.dtype == ir.DataType.DOUBLE else np.float32)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Value of an attribute, or the default where the node does not carry it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def is_gelu_by_tanh(node: ir.Node) -> bool:
    """Whether a node computes GELU by its tanh approximation, which is off by up to 4.8e-4."""
    return node.op_type == "Gelu" and node.domain == "" and attribute(node, "approximate") == "tanh"


class Builder:
    """Inserts nodes before `anchor`, with its metadata, so that new nodes lead back to its module."""

    def __init__(self, anchor: ir.Node, mixer_op: str = "") -> None:
        graph = anchor.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError("the anchor is not in a graph")
        self.anchor = anchor
        self.graph = graph
        self.metadata = dict(anchor.metadata_props) | ({MIXER_OP: mixer_op} if mixer_op else {})

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A new initializer; the name is made unique."""
        unique, n = name, len(self.graph.initializers)  # a number that is likely free: others begin so, too
        while unique in self.graph.initializers:
            unique, n = f"{name}_{n}", n + 1
        # Transposed, as torch keeps linear layers, it stays a view, which forms can share.
        compact = array if array.flags.forc else np.ascontiguousarray(array)
        value = ir.val(unique, const_value=ir.tensor(compact, name=unique))
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: ir.Value | None = None,
        shape: Sequence[Any] | None = None,
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Node:
        """A new node; `like` gives the output's type and (unless `shape` is given) its shape."""
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            num_outputs=outputs,
            metadata_props=dict(self.metadata),
        )
        for output in node.outputs:
            if like is not None:
                output.type = like.type
                output.shape = like.shape if shape is None else ir.Shape(shape)
        self.graph.insert_before(self.anchor, node)
        return node

    def ints(self, name: str, *numbers: int) -> ir.Value:
        """A new int64 initializer, one-dimensional: shapes, axes, bounds."""
        return self.constant(name, np.array(numbers, np.int64))

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """A new node with one output whose type and shape are left to inference: returns the output."""
        return self.value(op_type, inputs, attributes=attributes)

    def value(self, op_type: str, inputs: Sequence[ir.Value | None], **keywords: Any) -> ir.Value:
        """Like `node`, for nodes with one output: returns it."""
        return self.node(op_type, inputs, **keywords).outputs[0]


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old` read `new`, and drop old's node if it is dead.

    Where `old` is an output of the graph, `new` takes its place and its name; if `new` is an input or
    an output itself, an Identity between the two keeps both names.
    """
    if new.type is None:
        new.type = old.type
    if new.shape is None:
        new.shape = old.shape
    node = old.producer()
    if old.is_graph_output() and node is not None:
        if new.is_graph_input() or new.is_graph_output() or new.is_initializer():
            new = Builder(node).value("Identity", [new], like=old)
        old.name, new.name = None, old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    remove_if_dead(old.producer())


def remove_if_dead(node: ir.Node | None) -> None:
    """Remove a node that nothing reads, and then its producers likewise."""
    if node is None or node.graph is None:
        return
    if any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    producers = [value.producer() for value in node.inputs if value is not None]
    node.graph.remove(node, safe=True)
    for each in producers:
        remove_if_dead(each)

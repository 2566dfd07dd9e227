# SPDX-License-Identifier: Apache-2.0
"""Blocks that a model repeats are traced once: torch sees the first of a kind, the others are copies of its nodes.

torch.export and the translation to ONNX take milliseconds for every operator, and a backbone is one block twenty
times. Two blocks are of a kind if they are of one class with equal attributes and their tensors have equal shapes,
and the same for all modules in them: then they compute the same of inputs of the same shape, but for their weights.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from .graph import SCOPES, attribute, replace

_DOMAIN = "metaformer.repeats"
_BEGIN, _END, _COPY = "Begin", "End", "Copy"
"""Operators of the trace: around the first block of a kind, x -> x; and in place of another, x -> its output."""
_COMPARED_APART = ("_parameters", "_buffers", "_modules")
"""Attributes of every module."""


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Inside, blocks trace themselves as `write_out` wants it; the model must be called inside torch.export alone."""
    traced = _Traced()
    repeated = [(path, module, kind) for kind, twins in enumerate(_kinds(model)) for path, module in twins]
    try:
        for path, module, kind in repeated:
            module.forward = traced.forward(path, kind, module.forward)
        yield
    finally:
        for _, module, _ in repeated:
            module.__dict__.pop("forward", None)


def write_out(graph: ir.Graph, model: nn.Module) -> None:
    """Put in place of every `Copy` the nodes of its block, which read its weights, and take the marks away."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    begins, ends, templates = {}, {}, {}
    for node in [node for node in graph if node.domain == _DOMAIN]:
        number = attribute(node, "number")
        if node.op_type == _BEGIN:
            begins[number] = node
        elif node.op_type == _END:
            ends[number] = node
        else:
            if number not in templates:
                first = attribute(node, "first")
                templates[number] = _template(begins[number], ends[number], first, tensors)
            _copy(templates[number], node, graph, tensors)
    for mark in [node for node in graph if node.domain == _DOMAIN]:
        (value,) = mark.inputs
        assert value is not None
        replace(mark.outputs[0], value)


def _kinds(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Blocks of one kind, at least two, with their paths: neighbours in a container, themselves made of modules."""
    shared = len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False)))
    if shared:  # the trace knows such a tensor by one of its names
        return []
    found = []
    for parent, container in model.named_modules():
        if not isinstance(container, nn.Sequential | nn.ModuleList):
            continue
        kinds: list[list[tuple[str, nn.Module]]] = []
        for name, module in container.named_children():
            if not any(True for _ in module.children()):
                continue
            block = (f"{parent}.{name}" if parent else name, module)
            kind = next((kind for kind in kinds if _alike(kind[0][1], module)), None)
            if kind is None:
                kinds.append([block])
            else:
                kind.append(block)
        found += [kind for kind in kinds if len(kind) > 1]
    return found


def _alike(first: nn.Module, second: nn.Module) -> bool:
    """Whether the modules differ in nothing but the numbers in their parameters and buffers."""
    children = dict(first.named_children()), dict(second.named_children())
    return (
        type(first) is type(second)
        and _tensors(first) == _tensors(second)
        and _equal(_attributes(first), _attributes(second))
        and children[0].keys() == children[1].keys()
        and all(_alike(child, children[1][name]) for name, child in children[0].items())
    )


def _tensors(module: nn.Module) -> dict[str, tuple[Any, ...] | None]:
    own = {**module._parameters, **module._buffers}
    return {name: None if tensor is None else (tensor.shape, tensor.dtype) for name, tensor in own.items()}


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _COMPARED_APART}


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    if first.keys() != second.keys():
        return False
    return all(_same(value, second[name]) for name, value in first.items())


def _same(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    try:
        return bool(first == second)
    except (RuntimeError, ValueError):  # arrays have no one answer
        return False


@dataclass(frozen=True)
class _First:
    """A block that was traced: its path, the number of its marks, and what comes out."""

    path: str
    number: int
    shape: torch.Size
    dtype: torch.dtype


@dataclass
class _Traced:
    """The first of each kind for each shape of input."""

    firsts: dict[tuple[Any, ...], _First] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    def forward(self, path: str, kind: int, original: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of one block: its own between marks, or one `Copy`."""

        def traced(*args: Any, **named: Any) -> Any:
            if named or len(args) != 1 or not isinstance(args[0], Tensor):
                return original(*args, **named)
            (x,) = args
            key = (kind, *(str(side) for side in x.shape), x.dtype)  # as text: comparing the batch would fix it
            first = self.firsts.get(key)
            if first is None or first.path == path:
                number = next(self.numbers)
                output = original(_mark(_BEGIN, x, x.shape, x.dtype, number=number))
                if not isinstance(output, Tensor):
                    return output
                self.firsts[key] = _First(path, number, output.shape, output.dtype)
                return _mark(_END, output, output.shape, output.dtype, number=number)
            paths = {"first": first.path, "copy": path}
            return _mark(_COPY, x, first.shape, first.dtype, number=first.number, **paths)

        return traced


def _mark(op_type: str, x: Tensor, shape: torch.Size, dtype: torch.dtype, **attributes: Any) -> Tensor:
    name = f"{_DOMAIN}::{op_type}"
    made: Tensor = torch.onnx.ops.symbolic(name, (x,), attrs=attributes, dtype=dtype, shape=shape, version=1)
    return made


@dataclass(frozen=True)
class _Template:
    """What is copied: the nodes that the input or the weights of a block reach, in order.

    What these read beside is the same for all blocks: constants, the size of the batch.
    """

    x: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    weights: tuple[ir.Value, ...]


def _template(begin: ir.Node, end: ir.Node, path: str, tensors: Container[str]) -> _Template:
    (x,), (output,) = begin.outputs, end.inputs
    assert begin.graph is not None
    assert output is not None
    behind = _behind(output, begin)
    reached, nodes = {x}, []
    weights: dict[ir.Value, None] = {}
    for node in begin.graph:
        if node not in behind:
            continue
        own = {value: None for value in node.inputs if value is not None and _belongs(value, path, tensors)}
        if own or not reached.isdisjoint(node.inputs):
            nodes.append(node)
            weights |= own
            reached |= set(node.outputs)
    return _Template(x, output, tuple(nodes), tuple(weights))


def _behind(output: ir.Value, begin: ir.Node) -> set[ir.Node]:
    """All nodes that the value comes from, back to the mark."""
    found: set[ir.Node] = set()
    values: list[ir.Value | None] = [output]
    while values:
        value = values.pop()
        node = None if value is None else value.producer()
        if node is not None and node is not begin and node not in found:
            found.add(node)
            values += node.inputs
    return found


def _belongs(value: ir.Value, path: str, tensors: Container[str]) -> bool:
    """Whether it is a tensor of the block; the trace names arrays that the block was traced with after it, too."""
    return value.is_initializer() and str(value.name).startswith(f"{path}.") and value.name in tensors


def _copy(template: _Template, copy: ir.Node, graph: ir.Graph, tensors: Mapping[str, Tensor]) -> None:
    """Put the nodes in place of one `Copy`."""
    first, path = attribute(copy, "first"), attribute(copy, "copy")
    values: dict[ir.Value | None, ir.Value | None] = {template.x: copy.inputs[0]}
    for weight in template.weights:
        values[weight] = _weight(graph, path + str(weight.name).removeprefix(first), tensors)
    for node in template.nodes:
        made = ir.node(
            node.op_type,
            [values.get(value, value) for value in node.inputs],
            domain=node.domain,
            overload=node.overload,
            version=node.version,
            num_outputs=len(node.outputs),
            metadata_props=_moved(node.metadata_props, first, path),
        )
        made.attributes.update(node.attributes)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            values[old] = new
        graph.insert_before(copy, made)
    result = values.get(template.output)
    assert result is not None
    replace(copy.outputs[0], result)


def _weight(graph: ir.Graph, name: str, tensors: Mapping[str, Tensor]) -> ir.Value:
    """The initializer of that name; the exporter drops those that nothing it saw reads."""
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(tensors[name].detach(), name=name)))
    return graph.initializers[name]


def _moved(metadata: Mapping[str, str], first: str, path: str) -> dict[str, str]:
    """Metadata of a node of the first block, for the same node of another."""
    scopes = ast.literal_eval(metadata.get(SCOPES, "[]"))
    moved = [path + scope.removeprefix(first) if f"{scope}.".startswith(f"{first}.") else scope for scope in scopes]
    return {**metadata, SCOPES: repr(moved)} if scopes else dict(metadata)

# SPDX-License-Identifier: Apache-2.0
"""Whether TensorRT's ONNX parser takes every node of a graph, told before an engine is built.

operators.json has the operators with their types and, as text, what else they need; restrictions.py checks what of
that can be seen in a graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import onnx
import onnx.inliner
import onnx_ir as ir

from ...export.graph import module_of
from ...export.ops.mixer_op import DOMAIN, VERSION
from .known_issues import Version
from .patterns import STANDARD_DOMAINS
from .restrictions import BREAKS

_NAMES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.DOUBLE: "FP64",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.FLOAT4E2M1: "FP4",
}
"""TensorRT's names of types; those of integers and booleans are ONNX's."""
_SINCE: Mapping[str, Version] = {
    "Attention": (10, 14),
    "DFT": (11, 2),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "Swish": (11, 0),
}
"""The version that an operator came with, after 10.8."""
_SINCE_AT_OPSET: Mapping[str, tuple[int, Version]] = {"GroupNormalization": (21, (10, 9)), "ScatterND": (18, (10, 9))}
"""Operators that 10.8 has in an older form only: from which opset on they need which version."""
_DATA: Mapping[str, str] = {"Loop": "V", "OneHot": "T3", "Where": "T"}
"""Type variable of an operator's data, where it is not that of its first input."""
_MAKES_TYPE = frozenset({"Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike"})
"""Operators whose output has a type that none of their inputs needs to have."""


@dataclass(frozen=True)
class Operator:
    """What operators.json says of an operator: types of its data, in TensorRT's names, and what else it needs."""

    types: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Refusal:
    """A node that TensorRT cannot build.

    Attributes:
        types: of its inputs, in TensorRT's names, each once.
        module: the PyTorch module that it comes from; "" for the root.
        reason: why, and for a function body what to do instead.
        body_of: the mixer op in whose function body it is; `node` and `module` are then the mixer op's. "" for a node
            of the graph itself.
    """

    node: str
    op_type: str
    types: tuple[str, ...]
    module: str
    reason: str
    body_of: str = ""

    @property
    def message(self) -> str:
        """All of it in one line."""
        types = f" ({', '.join(self.types)})" if self.types else ""
        body = f" in the function body of {self.body_of}" if self.body_of else ""
        return f"{self.op_type}{types}{body} of {self.module or 'the model'}: {self.reason}"


@dataclass(frozen=True)
class _Parser:
    """What decides besides the node."""

    version: Version
    opset: int
    plugins: frozenset[str]
    functions: Mapping[ir.OperatorIdentifier, ir.Function]

    @property
    def name(self) -> str:
        return f"TensorRT {_dotted(self.version)}"


def check_support(model: ir.Model, version: Version, plugins: frozenset[str]) -> tuple[Refusal, ...]:
    """Which nodes that version of TensorRT cannot build, in the order of the graph.

    A node of the metaformer domain is built by the plugin of its name or else from its function body, as the parser
    does it; graphs in nodes (If, Loop) are part of the graph. What is documented is checked: the builder may still
    fail with a graph that has no refusals.

    Args:
        model: with types and shapes; nothing of it is changed.
        version: of TensorRT, for instance (10, 14).
        plugins: mixer ops that have a plugin.
    """
    parser = _Parser(version, model.opset_imports.get("", 0), plugins, model.functions)
    return tuple(_refusals(model.graph, parser, None))


@cache
def operators() -> Mapping[str, Operator]:
    """The operators of the standard domain that TensorRT's parser takes, by name."""
    return {op: Operator(tuple(each["types"]), each.get("note", "")) for op, each in _table()["supported"].items()}


@cache
def _table() -> dict[str, Any]:
    return dict(json.loads(files(__package__).joinpath("operators.json").read_text(encoding="utf-8")))


def _refusals(graph: ir.Graph, parser: _Parser, call: ir.Node | None) -> Iterator[Refusal]:
    """Of a graph, or of the function body that a node calls."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.domain in STANDARD_DOMAINS:
            if reason := _reason(node, parser):
                yield _refusal(node, reason, call)
        elif node.domain != DOMAIN or node.op_type not in parser.plugins:
            yield from _refusals_of_body(node, parser, call)


def _refusals_of_body(node: ir.Node, parser: _Parser, call: ir.Node | None) -> Iterator[Refusal]:
    function = parser.functions.get(node.op_identifier())
    if function is None:
        yield _refusal(
            node, f"{parser.name} has no plugin of that name, and the model has no function body for it", call
        )
    elif len(function.inputs) != len(node.inputs):
        yield _refusal(node, f"it has {len(node.inputs)} inputs, its function body {len(function.inputs)}", call)
    else:
        yield from _refusals(_body(node, parser), parser, call or node)


def _refusal(node: ir.Node, reason: str, call: ir.Node | None) -> Refusal:
    types = tuple(dict.fromkeys(_name(value) for value in node.inputs if value is not None))
    if call is None:
        return Refusal(str(node.name), node.op_type, types, module_of(node), reason)
    reason += "; build with the plugin, or from the portable form"
    return Refusal(str(call.name), node.op_type, types, module_of(call), reason, call.op_type)


def _body(node: ir.Node, parser: _Parser) -> ir.Graph:
    """The function body that a node calls as a graph, with the types and shapes that follow from the node's inputs."""
    inputs = [
        None if value is None else ir.val(f"input{i}", value.dtype, value.shape) for i, value in enumerate(node.inputs)
    ]
    call = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
    for i, (output, known) in enumerate(zip(call.outputs, node.outputs, strict=True)):
        output.name, output.type, output.shape = f"output{i}", known.type, known.shape
    given = [value for value in inputs if value is not None]
    imports = {"": parser.opset, node.domain: VERSION}
    graph = ir.Graph(given, call.outputs, nodes=[call], opset_imports=imports, name="call")
    functions = [each for each in parser.functions.values() if each.name not in parser.plugins]
    inlined = onnx.inliner.inline_local_functions(ir.to_proto(ir.Model(graph, ir_version=10, functions=functions)))
    return ir.from_proto(onnx.shape_inference.infer_shapes(inlined, data_prop=True)).graph


def _reason(node: ir.Node, parser: _Parser) -> str:
    """Why a node of the standard domain cannot be built; "" if it can."""
    operator = operators().get(node.op_type)
    if operator is None:
        if node.op_type in _table()["unsupported"]:
            return f"{parser.name} does not have this operator"
        return "this operator is not among those known of TensorRT (operators.json); look it up"
    since = _since(node.op_type, parser.opset)
    if since is not None and parser.version < since:
        return f"{parser.name} does not have it in opset {parser.opset}, {_dotted(since)} does"
    if any(_name(value) not in operator.types for value in _data(node, parser.opset)):
        return f"{parser.name} has it in {', '.join(operator.types)} only"
    if node.op_type in BREAKS and BREAKS[node.op_type](node):
        return f"{parser.name} has it only so: {operator.note}"
    return ""


def _since(op_type: str, opset: int) -> Version | None:
    from_opset, version = _SINCE_AT_OPSET.get(op_type, (opset + 1, ()))
    return version if opset >= from_opset else _SINCE.get(op_type)


def _data(node: ir.Node, opset: int) -> list[ir.Value]:
    """What the types of the table are about: not indices, shapes, scales and the like."""
    made = [node.outputs[0]] if node.op_type in _MAKES_TYPE else []
    formal = onnx.defs.get_schema(node.op_type, opset).inputs
    if not formal:
        return made
    variables = [formal[min(i, len(formal) - 1)].type_str for i in range(len(node.inputs))]
    wanted = _DATA.get(node.op_type, formal[0].type_str)
    data = [value for value, name in zip(node.inputs, variables, strict=True) if value is not None and name == wanted]
    return [*data, *made]


def _name(value: ir.Value) -> str:
    return "unknown type" if value.dtype is None else _NAMES.get(value.dtype, value.dtype.name)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))

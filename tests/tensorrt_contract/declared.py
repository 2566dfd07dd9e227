# SPDX-License-Identifier: Apache-2.0
"""What a source of ours declares that types can be told from: functions, classes and constants."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .checks import Version, numbers

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class OwnClass:
    """Annotations by name: of fields and properties, and of what methods return."""

    bases: tuple[ast.expr, ...]
    fields: Mapping[str, ast.expr]
    methods: Mapping[str, ast.expr | None]


@dataclass(frozen=True)
class Declared:
    """A source: what its functions return, its classes, and constants that hold a version."""

    functions: Mapping[str, ast.expr | None]
    classes: Mapping[str, OwnClass]
    constants: Mapping[str, Version]


def declared_in(tree: ast.Module) -> Declared:
    """Functions and classes at any depth, since TensorRT is often imported in a function and derived from there."""
    functions = {node.name: node.returns for node in _functions(tree.body)}
    classes = {node.name: _own_class(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return Declared(functions, classes, _constants(tree.body))


def is_property(node: Function) -> bool:
    return any(ast.unparse(each).endswith("property") for each in node.decorator_list)


def methods_of(node: ast.ClassDef) -> list[Function]:
    return [each for each in node.body if isinstance(each, Function)]


def _functions(statements: Sequence[ast.stmt]) -> Iterator[Function]:
    """Methods are left out."""
    for statement in statements:
        if isinstance(statement, Function):
            yield statement
        if not isinstance(statement, ast.ClassDef):
            yield from _functions([each for each in ast.iter_child_nodes(statement) if isinstance(each, ast.stmt)])


def _own_class(node: ast.ClassDef) -> OwnClass:
    fields = {
        each.target.id: each.annotation
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    methods = methods_of(node)
    fields |= {each.name: each.returns for each in methods if is_property(each) and each.returns is not None}
    return OwnClass(tuple(node.bases), fields, {each.name: each.returns for each in methods if not is_property(each)})


def _constants(statements: Sequence[ast.stmt]) -> dict[str, Version]:
    found = {}
    for statement in statements:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            version = numbers(statement.value, {})
            found |= {each.id: version for each in targets if isinstance(each, ast.Name) and version is not None}
    return found

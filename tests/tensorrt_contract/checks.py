# SPDX-License-Identifier: Apache-2.0
"""What an `if` says about the version of TensorRT, read from its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence

Version = tuple[int, ...]
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.LtE: ast.GtE, ast.Gt: ast.Lt}


def truth(
    test: ast.expr, version: Version, constants: Mapping[str, Version], has: Callable[[ast.Call], bool | None]
) -> bool | None:
    """What a test gives in a version of TensorRT, or None if that depends on something else.

    Read are >= and < between something called `version` (a name, an attribute, a call, a part of one) and a tuple of
    numbers, and is_at_least(version, tuple); hasattr; and `not`, `and` and `or` of these. What > and <= give depends on
    how many numbers the version has, (10, 8) or (10, 8, 0, 43), so that they are not relied on.

    Args:
        constants: tuples by the names that stand for them.
        has: what a call of hasattr gives.
    """

    def inner(each: ast.expr) -> bool | None:
        return truth(each, version, constants, has)

    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            found = inner(operand)
            return None if found is None else not found
        case ast.BoolOp(op=op, values=values):
            decisive, each = isinstance(op, ast.Or), [inner(value) for value in values]
            if decisive in each:
                return decisive
            return None if None in each else not decisive
        case ast.Call(func=ast.Name(id="hasattr")):
            return has(test)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _compare(left, type(op), right, version, constants)
        case ast.Call(func=ast.Name(id="is_at_least"), args=[left, right]):
            return _compare(left, ast.GtE, right, version, constants)
    return None


def is_check(test: ast.expr) -> bool:
    """Whether a test asks for a version or for a name."""
    return any(
        (isinstance(node, ast.Compare) and any(_is_version(each) for each in (node.left, *node.comparators)))
        or (isinstance(node, ast.Call) and _name(node.func) in ("hasattr", "is_at_least"))
        for node in ast.walk(test)
    )


def always_leaves(statements: Sequence[ast.stmt]) -> bool:
    """Whether what follows a block is not reached from it."""
    if not statements:
        return False
    last = statements[-1]
    if isinstance(last, ast.If):
        return always_leaves(last.body) and always_leaves(last.orelse)
    return isinstance(last, ast.Return | ast.Raise | ast.Continue | ast.Break)


def numbers(node: ast.expr, constants: Mapping[str, Version]) -> Version | None:
    """The version that an expression spells, or that a constant of that name holds."""
    if isinstance(node, ast.Tuple):
        values = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, int)]
        return tuple(values) if values and len(values) == len(node.elts) else None
    return constants.get(_name(node))


def _compare(
    left: ast.expr, op: type[ast.cmpop], right: ast.expr, version: Version, constants: Mapping[str, Version]
) -> bool | None:
    if _is_version(right):
        left, op, right = right, _MIRRORED.get(op, op), left
    bound = numbers(right, constants)
    if bound is None or not _is_version(left) or op not in (ast.GtE, ast.Lt):
        return None
    return (version >= bound) == (op is ast.GtE)


def _is_version(node: ast.expr) -> bool:
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    return _name(node).lower().endswith("version")


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""

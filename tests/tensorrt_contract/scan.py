# SPDX-License-Identifier: Apache-2.0
"""Hold every name of TensorRT that sources use against one version of it, without running them.

The sources follow a convention, without which a name is not seen:

- TensorRT is `trt` and its plugins are `trtp`, by `import tensorrt as trt` and `import tensorrt.plugin as trtp` or by a
  variable of that name. Polygraphy comes by `import polygraphy.backend.trt as NAME` or `from polygraphy.backend.trt
  import NAME`.
- An object of TensorRT is a parameter, a variable, a field or the result of a function of ours whose annotation names
  its class (`builder: trt.Builder`), or what a call or an attribute of TensorRT gives, if its signature says the class.
- A name that some versions lack is used on one side of an `if` on the version (checks.py), or behind one that returns
  or raises; in a function or a class whose name begins with _ and that is named in such places only; or is read by
  getattr with a default.

Held are members of modules, classes and objects; that an attribute which is set can be set; the number and the names of
arguments, of constructors too; annotations; and that every public method of a subclass is one which TensorRT calls,
with as many arguments. Types of arguments are not: pybind11 judges these when the code runs (harness.py).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from .api import Api, Entity
from .checks import always_leaves
from .declared import Function, declared_in, is_property, methods_of
from .values import UNKNOWN, Values
from .verdict import Scan

_MODULES = {"tensorrt": "trt", "tensorrt.plugin": "trtp"}
"""What is imported, under which name."""
_ROUNDS = 5
"""At most; fields without an annotation, and functions that a version never calls, are known after one more."""


def scan(sources: Mapping[str, str], api: Api) -> Scan:
    """Hold sources, by file name, against a version."""
    trees = {file: ast.parse(text) for file, text in sources.items()}
    declared = {file: declared_in(tree) for file, tree in trees.items()}
    made = Scan(api.version)
    for _ in range(_ROUNDS):
        checks = {key: replace(check, kept_out=0, missing=0) for key, check in made.checks.items()}
        before, made = made, Scan(api.version, checks=checks)
        for file, tree in trees.items():
            _Scanner(file, api, declared, before, made).module(tree)
        if (before.fields, before.references) == (made.fields, made.references):
            break
    return made


def _is_version(node: ast.Tuple) -> bool:
    return len(node.elts) >= 2 and all(isinstance(each, ast.Constant) and type(each.value) is int for each in node.elts)


class _Scanner(Values):
    """Walks one file in the order of its text."""

    def module(self, tree: ast.Module) -> None:
        declared = self.declared[self.file]
        self.names |= {name: self.own(self.file, name) for name in (*declared.classes, *declared.functions)}
        self.block(tree.body)

    def block(self, statements: Sequence[ast.stmt]) -> None:
        """Statements in order; what follows an `if` that leaves on one side is on the other."""
        with ExitStack() as rest:
            for statement in statements:
                self.statement(statement)
                if isinstance(statement, ast.If) and always_leaves(statement.body) != always_leaves(statement.orelse):
                    rest.enter_context(self.given(statement.test, not always_leaves(statement.body)))

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.If():
                self.value(node.test)
                for side, branch in ((True, node.body), (False, node.orelse)):
                    with self.given(node.test, side):
                        self.block(branch)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._function(node, [], node.name)
                self.names[node.name] = self.own(self.file, node.name)
            case ast.ClassDef():
                self._class(node)
            case ast.Import():
                for alias in node.names:
                    self._import(node, alias)
            case ast.ImportFrom():
                for alias in node.names:
                    self._import_from(node, alias)
            case ast.Assign():
                found = self.value(node.value)
                for target in node.targets:
                    self.bind(target, found)
            case ast.AnnAssign():
                found = self.value(node.value) if node.value else UNKNOWN
                stated = self.annotation(node.annotation)
                self.bind(node.target, Entity("value", stated) if stated else found)
            case ast.For() | ast.AsyncFor():
                self.bind(node.target, self.element(self.value(node.iter)))
                self.block([*node.body, *node.orelse])
            case ast.With() | ast.AsyncWith():
                self._with(node)
            case _:
                self.children(node)

    def children(self, node: ast.AST) -> None:
        """The statements and expressions within."""
        for _, content in ast.iter_fields(node):
            parts = content if isinstance(content, list) else [content]
            if parts and all(isinstance(part, ast.stmt) for part in parts):
                self.block(parts)
                continue
            for part in parts:
                if isinstance(part, ast.expr):
                    self.value(part)
                elif isinstance(part, ast.AST):
                    self.children(part)

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            found = self.value(item.context_expr)
            if item.optional_vars is not None:
                # A generator that contextmanager wraps is annotated as an iterator over what it gives.
                self.bind(item.optional_vars, self.element(found) if found.type.startswith("list[") else found)
        self.block(node.body)

    def _function(self, node: Function, first: Sequence[Entity], path: str) -> None:
        """`first` are the leading parameters whose types are known from elsewhere."""
        for each in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.value(each)
        if node.returns is not None:
            self.annotation(node.returns)
        outer, self.names = self.names, dict(self.names)
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for i, parameter in enumerate(parameters):
            stated = self.annotation(parameter.annotation) if parameter.annotation is not None else ""
            known = Entity("value", stated) if stated else UNKNOWN
            self.bind(ast.Name(parameter.arg), first[i] if i < len(first) else known)
        for rest in filter(None, (node.args.vararg, node.args.kwarg)):
            stated = self.annotation(rest.annotation) if rest.annotation is not None else ""
            self.bind(ast.Name(rest.arg), Entity("value", f"list[{stated}]") if stated else UNKNOWN)
        with self.at(self._never_called(node.name, path)):
            self.block(node.body)
        self.names = outer

    def _never_called(self, name: str, path: str) -> list[tuple[str, bool]]:
        """Checks that keep the version from every use of a function that nobody else knows of."""
        uses = self.before.references.get(name, []) if path.startswith("_") and not name.startswith("__") else []
        return [use for use in dict.fromkeys(uses) if use is not None] if None not in uses else []

    def _class(self, node: ast.ClassDef) -> None:
        for each in (*node.bases, *node.decorator_list):
            self.value(each)
        with self.quietly():
            bases = [base.type for base in map(self.value, node.bases) if base.type in self.api.members]
        self.names[node.name] = itself = self.own(self.file, node.name)
        for statement in node.body:
            if not isinstance(statement, Function):
                self.statement(statement)
        for method in methods_of(node):
            if bases and not method.name.startswith("_") and not is_property(method):
                self._override(method, bases[0])
            self._function(method, [Entity("value", itself.type)], f"{node.name}.{method.name}")

    def _override(self, method: Function, base: str) -> None:
        found = self.api.find(base, method.name)
        self.record(method, f"{base}.{method.name} to override", found is not None)
        if found is None or method.args.vararg is not None or not found.overloads:
            return
        names = [*method.args.posonlyargs, *method.args.args][1:]
        passed = len(found.overloads[0].parameters)
        fits = len(names) - len(method.args.defaults) <= passed <= len(names)
        self.record(method, f"{base}.{method.name} that passes {len(names)} arguments", fits)

    def _import(self, node: ast.Import, alias: ast.alias) -> None:
        name = alias.asname or alias.name
        if alias.name == "polygraphy.backend.trt":
            self.names[name] = Entity("module", "polygraphy")
        elif alias.name.partition(".")[0] == "tensorrt" and name != _MODULES.get(alias.name):
            self.record(node, f"`{ast.unparse(node)}`, which this test cannot follow", False)

    def _import_from(self, node: ast.ImportFrom, alias: ast.alias) -> None:
        name, module = alias.asname or alias.name, node.module or ""
        if module.partition(".")[0] == "tensorrt":
            self.record(node, f"`{ast.unparse(node)}`, which this test cannot follow", False)
        if module == "polygraphy.backend.trt":
            self.names[name] = self.member(node, Entity("module", "polygraphy"), alias.name)
        if node.level == 0:
            return
        declaring = _file_of(module or alias.name, self.declared)
        if declaring:
            self.names[name] = self.own(declaring, alias.name) if module else Entity("module", f"{declaring}:")
            constants = self.declared[declaring].constants
            self.constants |= {name: constants[alias.name]} if alias.name in constants else {}


def _file_of(module: str, files: Mapping[str, object]) -> str:
    stem = module.rpartition(".")[2]
    return next((file for file in files if file.rpartition("/")[2] == f"{stem}.py"), "")

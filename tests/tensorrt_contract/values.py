# SPDX-License-Identifier: Apache-2.0
"""What expressions of a source stand for, and every name of TensorRT that they use on the way."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from .api import Api, Entity, Overload
from .checks import Version, is_check, truth
from .declared import Declared
from .verdict import Check, Scan, Use

UNKNOWN = Entity("value")
MODULES = ("trt", "trtp")
"""Names that always mean TensorRT and its plugins, by whatever way a source comes to them."""
_SEQUENCES = {"list", "tuple", "set", "frozenset", "Sequence", "Iterable", "Iterator", "Collection", "Generator"}
_TRANSPARENT = {"Optional", "Final", "ClassVar", "Annotated"}
_BY_TEXT = {"hasattr": 2, "getattr": 2, "setattr": 3}
"""Functions that take a name as text, and the least arguments that they take."""


class Values:
    """Types of the names of one file, and where in it a version gets to.

    A class of ours is a type "FILE:CLASS", a module of ours the module "FILE:".
    """

    def __init__(self, file: str, api: Api, declared: Mapping[str, Declared], before: Scan, made: Scan) -> None:
        """`before` is what an earlier walk over all files made, `made` what this one does."""
        self.file, self.api, self.declared, self.before, self.made = file, api, declared, before, made
        self.names = {name: Entity("module", name) for name in MODULES}
        self.constants: dict[str, Version] = dict(declared[file].constants)
        self.under: list[tuple[str, bool]] = []
        self.optional = self.silent = False

    def record(self, node: ast.AST, what: str, exists: bool) -> None:
        if self.silent:
            return
        kept_from = [self.made.checks[key] for key, _ in self._kept_from()]
        place = f"{self.file}:{getattr(node, 'lineno', 0)}"
        self.made.uses.append(Use(place, what, exists, not kept_from, self.optional))
        for check in [] if self.optional else kept_from:
            check.kept_out += 1
            check.missing += not exists

    @contextmanager
    def given(self, test: ast.expr, side: bool) -> Iterator[None]:
        """What is reached where a test gives `side`."""
        if not is_check(test):
            yield
            return
        key = f"{self.file}:{test.lineno}:{test.col_offset}-{test.end_lineno}:{test.end_col_offset}"
        if key not in self.made.checks:
            holds = truth(test, self.api.version, self.constants, self._has)
            lacking = sum(isinstance(each, ast.Call) and self._has(each) is False for each in ast.walk(test))
            self.made.checks[key] = Check(f"{self.file}:{test.lineno}", ast.unparse(test), holds, lacking)
        with self.at([(key, side)]):
            yield

    @contextmanager
    def at(self, sides: Sequence[tuple[str, bool]]) -> Iterator[None]:
        """What is reached on these sides of checks."""
        self.under += sides
        yield
        del self.under[len(self.under) - len(sides) :]

    def refer(self, name: str) -> None:
        """A function of ours of that name is used here."""
        if not self.silent:
            self.made.references.setdefault(name, []).append(next(iter(self._kept_from()), None))

    def _kept_from(self) -> list[tuple[str, bool]]:
        return [(key, side) for key, side in self.under if self.made.checks[key].holds is (not side)]

    @contextmanager
    def quietly(self, silent: bool = True, optional: bool = True) -> Iterator[None]:
        """Where uses are not recorded, or as ones that some version must have."""
        before = self.silent, self.optional
        self.silent, self.optional = before[0] or silent, before[1] or optional
        yield
        self.silent, self.optional = before

    def value(self, node: ast.expr) -> Entity:
        """What an expression stands for; each part of it is recorded once."""
        match node:
            case ast.Name(id=name):
                self.refer(name)
                return self.names.get(name, UNKNOWN)
            case ast.Attribute(value=owner, attr=name):
                self.refer(name)
                return self.member(node, self.value(owner), name)
            case ast.Call():
                return self.call(node)
            case ast.Subscript(value=owner, slice=index):
                found = self.value(owner)
                self.value(index)
                return found if isinstance(index, ast.Slice) else self.element(found)
            case ast.NamedExpr(target=target, value=inner):
                found = self.value(inner)
                self.bind(target, found)
                return found
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.value(test)
                return self._known([self._under([(test, True)], body), self._under([(test, False)], orelse)])
            case ast.BoolOp(op=op, values=values):
                tests = [(each, isinstance(op, ast.And)) for each in values]
                return self._known([self._under(tests[:i], each) for i, each in enumerate(values)])
            case ast.ListComp(generators=loops) | ast.SetComp(generators=loops) | ast.GeneratorExp(generators=loops):
                return self._comprehension(loops, [node.elt])
            case ast.DictComp(generators=loops, key=key, value=item):
                return self._comprehension(loops, [key, item])
        self.children(node)
        return UNKNOWN

    def children(self, node: ast.AST) -> None:
        """The expressions within."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
            else:
                self.children(child)

    def member(self, node: ast.AST, owner: Entity, name: str) -> Entity:
        """An attribute of a module, class or object; what is not TensorRT's is not judged."""
        if name.startswith("__") and name != "__version__":
            return UNKNOWN
        if ":" in owner.type:
            return self._own_member(node, owner, name)
        if owner.type not in self.api.members or owner.kind == "callable":
            return UNKNOWN
        found = self.api.find(owner.type, name)
        self.record(node, f"{owner.type}.{name}", found is not None)
        return found or UNKNOWN

    def call(self, node: ast.Call) -> Entity:
        name = ast.unparse(node.func)
        if name in _BY_TEXT and len(node.args) >= _BY_TEXT[name] and isinstance(node.args[1], ast.Constant):
            return self._by_text(node, name, str(node.args[1].value))
        if name in ("cast", "typing.cast"):
            self.value(node.args[1])
            return Entity("value", self.annotation(node.args[0]))
        called = self.value(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.value(argument)
        if called.kind == "class":
            self._overload(node, self.api.constructors.get(called.type))
            return Entity("value", called.type)
        taken = self._overload(node, called.overloads or None)
        return Entity("value", taken.returns) if taken else UNKNOWN

    def annotation(self, node: ast.expr) -> str:
        """The type that an annotation states, or nothing; some version must have what it names."""
        with self.quietly(silent=False):
            return self._stated(node)

    def element(self, found: Entity) -> Entity:
        """What an index into an object, or a loop over it, gives."""
        if found.type.startswith("list["):
            return Entity("value", found.type.removeprefix("list[").removesuffix("]"))
        item = self.api.members.get(found.type, {}).get("__getitem__") if found.kind == "value" else None
        return Entity("value", item.overloads[0].returns) if item and item.overloads else UNKNOWN

    def bind(self, target: ast.expr, found: Entity) -> None:
        """What an assignment does to types; setting an attribute of TensorRT's is a use of it."""
        match target:
            case ast.Name(id=name):
                self.names[name] = found if name not in MODULES else self.names[name]
            case ast.Attribute(value=owner, attr=name):
                self._set(target, self.value(owner), name, found)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self.bind(part, self.element(found))
            case _:
                self.value(target)

    def own(self, file: str, name: str) -> Entity:
        """A function or class that a file of ours declares."""
        declared = self.declared[file]
        if name in declared.classes:
            return Entity("class", f"{file}:{name}")
        return self._own_function(declared.functions[name]) if name in declared.functions else UNKNOWN

    def _own_function(self, returns: ast.expr | None) -> Entity:
        """Any call of it is right."""
        with self.quietly():
            stated = self.annotation(returns) if returns is not None else ""
        return Entity("callable", overloads=(Overload((), variadic=True, returns=stated),))

    def _own_member(self, node: ast.AST, owner: Entity, name: str) -> Entity:
        file, _, class_name = owner.type.partition(":")
        if not class_name:
            return self.own(file, name)
        declared = self.declared[file].classes[class_name]
        if name in declared.methods:
            return self._own_function(declared.methods[name])
        with self.quietly():
            stated = self.annotation(declared.fields[name]) if name in declared.fields else ""
            known = Entity("value", stated) if stated else self._field(owner.type, name)
            if known != UNKNOWN:
                return known
            bases = [self.value(base) for base in declared.bases]
        inherited = [base for base in bases if ":" in base.type or name in self.api.members.get(base.type, {})]
        return self.member(node, inherited[0], name) if inherited else UNKNOWN

    def _field(self, owner: str, name: str) -> Entity:
        found = self.made.fields.get((owner, name)) or self.before.fields.get((owner, name))
        return found or UNKNOWN

    def _set(self, node: ast.Attribute, owner: Entity, name: str, found: Entity) -> None:
        if ":" in owner.type:
            if found.type:
                self.made.fields[owner.type, name] = found
            return
        held = self.member(node, owner, name)
        if not held.settable:
            self.record(node, f"{owner.type}.{name} that can be set", False)

    def _by_text(self, node: ast.Call, function: str, name: str) -> Entity:
        """A member that is looked for, read or set by its name."""
        owner = self.value(node.args[0])
        for argument in node.args[2:]:
            self.value(argument)
        if function == "setattr":
            self._set(ast.Attribute(node.args[0], name, lineno=node.lineno), owner, name, UNKNOWN)
            return UNKNOWN
        with self.quietly(silent=False, optional=function == "hasattr" or len(node.args) > 2):
            found = self.member(node, owner, name)
        return found if function == "getattr" else UNKNOWN

    def _has(self, node: ast.Call) -> bool | None:
        """What hasattr gives, where it asks for a name of TensorRT's."""
        if ast.unparse(node.func) != "hasattr" or not isinstance(node.args[1], ast.Constant):
            return None
        with self.quietly():
            owner = self.value(node.args[0])
        known = owner.type in self.api.members and owner.kind != "callable"
        return self.api.find(owner.type, str(node.args[1].value)) is not None if known else None

    def _overload(self, node: ast.Call, overloads: Sequence[Overload] | None) -> Overload | None:
        """The signature that a call fits, or the first; what has none to hold a call against is not judged."""
        if overloads is None:
            return None
        positional = sum(not isinstance(each, ast.Starred) for each in node.args)
        keywords = [each.arg for each in node.keywords if each.arg is not None]
        more = positional < len(node.args) or len(keywords) < len(node.keywords)
        taken = next((each for each in overloads if each.accepts(positional, keywords, more)), None)
        if taken is None or not (taken.variadic and not taken.parameters):
            named = f"{positional} arguments" + (f" and {', '.join(keywords)}" if keywords else "")
            self.record(node, f"{ast.unparse(node.func)} that takes {named}", taken is not None)
        return taken or next(iter(overloads), None)

    def _stated(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return self._stated(ast.increment_lineno(ast.parse(text, mode="eval"), node.lineno - 1).body)
            case ast.Name(id=name):
                named = self.names.get(name, UNKNOWN)
                files = [self.file, *self.declared] if named == UNKNOWN else []
                own = next((f"{file}:{name}" for file in files if name in self.declared[file].classes), "")
                return named.type if named.kind == "class" else own
            case ast.Attribute():
                named = self.value(node)
                return named.type if named.kind == "class" else ""
            case ast.BinOp(left=left, right=right):
                left_type, right_type = self._stated(left), self._stated(right)
                return left_type or right_type
            case ast.Subscript(value=head, slice=inner):
                parts = [self._stated(each) for each in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
                name = ast.unparse(head).rpartition(".")[2]
                if name in _SEQUENCES:
                    return f"list[{parts[0]}]" if parts[0] else ""
                return parts[0] if name in _TRANSPARENT else ""
            case ast.List(elts=parts):
                for part in parts:
                    self._stated(part)
        return ""

    def _under(self, tests: Sequence[tuple[ast.expr, bool]], node: ast.expr) -> Entity:
        with ExitStack() as stack:
            for test, side in tests:
                stack.enter_context(self.given(test, side))
            return self.value(node)

    def _known(self, found: Sequence[Entity]) -> Entity:
        return next((each for each in found if each != UNKNOWN), UNKNOWN)

    def _comprehension(self, loops: Sequence[ast.comprehension], parts: Sequence[ast.expr]) -> Entity:
        with ExitStack() as stack:
            for loop in loops:
                self.bind(loop.target, self.element(self.value(loop.iter)))
                for test in loop.ifs:
                    self.value(test)
                    stack.enter_context(self.given(test, True))
            found = [self.value(part) for part in parts]
        return Entity("value", f"list[{found[0].type}]") if found[0].type and len(parts) == 1 else UNKNOWN

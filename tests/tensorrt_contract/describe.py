# SPDX-License-Identifier: Apache-2.0
"""Print what `tensorrt`, `tensorrt.plugin` and Polygraphy offer, as JSON in the last line.

Runs in a process of its own, with one version of TensorRT (harness.py). Signatures of the bindings are read
from their docstrings, which pybind11 writes from what is compiled; those of Python code by inspection. What the JSON
says is documented where it is read, in api.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = {"trt": "tensorrt", "trtp": "tensorrt.plugin", "polygraphy": "polygraphy.backend.trt"}
"""The names that our code knows them by."""
_NATIVE = "tensorrt_bindings.tensorrt"
_SPECIAL = {"__getitem__", "__call__"}
_SIGNATURE = re.compile(r"^(?:\d+\. )?\w*\((?P<parameters>.*)\) -> (?P<returns>.+)$")
_SEQUENCE = re.compile(
    r"^(?:collections\.abc\.|typing\.)?(?:list|List|tuple|Tuple|Sequence|Iterable|Iterator)\[(?P<item>.+)\]$"
)
_OPENING, _CLOSING = "[(<{", "])>}"

Json = dict[str, Any]


def split(parameters: str) -> list[str]:
    """The parameters of a signature: parted at commas that stand in no bracket and no quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, character in enumerate(parameters):
        if character == "'":
            quoted = not quoted
        elif not quoted and character in _OPENING:
            depth += 1
        elif not quoted and character in _CLOSING:
            depth -= 1
        elif character == "," and depth == 0 and not quoted:
            parts.append(parameters[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, parameters[start:]] if part.strip()]


def overloads(docstring: str, bound: bool) -> list[Json]:
    """The signatures that pybind11 wrote into a docstring; without `self` where the callable is bound to an object.

    Names that pybind11 made up (arg0) cannot be used as keywords. `returns` is the text behind the arrow.
    """
    found = []
    for line in docstring.splitlines():
        match = _SIGNATURE.match(line.strip())
        if match is None:
            continue
        parts = split(match["parameters"])[1 if bound else 0 :]
        parameters = [_parameter(part) for part in parts if part[0] not in "*/"]
        variadic = any(part.startswith("*") and len(part) > 1 for part in parts)
        found.append({"parameters": parameters, "variadic": variadic, "returns": match["returns"].strip()})
    return found


def _parameter(part: str) -> Json:
    name = part.partition(":")[0].partition("=")[0].strip()
    return {"name": name, "required": "=" not in part, "keyword": re.fullmatch(r"arg\d+", name) is None}


class Describer:
    """Collects classes as they are met, under names like trt.IBuilderConfig."""

    def __init__(self) -> None:
        self.classes: dict[str, Json] = {}

    def module(self, module: ModuleType) -> Json:
        """Entities by name, private ones left out."""
        names = [name for name in dir(module) if not name.startswith("_") or name == "__version__"]
        return {name: self.entity(getattr(module, name), bound=False) for name in names}

    def entity(self, value: Any, bound: bool) -> Json:
        if isinstance(value, ModuleType):
            return {"is": "module"}
        if isinstance(value, property):
            return {"is": "value", "returns": _property_type(value), "settable": value.fset is not None}
        if inspect.isclass(value):
            return {"is": "class", "class": self.visit(value)}
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if callable(function) and hasattr(function, "__name__"):
            return {"is": "callable", "overloads": _callable(function, bound and not isinstance(value, staticmethod))}
        return {"is": "value", "returns": self.visit(type(value)) or "", "settable": True}

    def visit(self, cls: type) -> str:
        """The name of a class, which is described with all that it inherits; empty for a class of others."""
        name = class_name(cls)
        if name and name not in self.classes:
            self.classes[name] = {}  # it may hold members of its own class
            members = {
                member: self.entity(inspect.getattr_static(cls, member), bound=True)
                for member in dir(cls)
                if not member.startswith("_") or member in _SPECIAL
            }
            assigned = {field: {"is": "value", "returns": "", "settable": True} for field in sorted(_assigned(cls))}
            self.classes[name] = {"members": {**assigned, **members}, "constructor": _constructor(cls)}
        return name


def class_name(cls: type) -> str:
    for name, package in (("trt", _NATIVE), ("trtp", "tensorrt_bindings.plugin")):
        if cls.__module__.startswith(package):
            return f"{name}.{cls.__qualname__}"
    return f"polygraphy.{cls.__qualname__}" if cls.__module__.startswith("polygraphy.backend.trt") else ""


def type_name(text: str, classes: set[str]) -> str:
    """A class that a signature names, "list[...]" of one, or nothing; C++ names are told by their last part."""
    text = text.strip().removesuffix(" | None").removeprefix("Optional[")
    sequence = _SEQUENCE.match(text)
    if sequence is not None:
        item = type_name(split(sequence["item"])[0], classes)
        return f"list[{item}]" if item else ""
    path = re.sub(r"^(tensorrt_bindings\.\w+\.(_\w+\.)?|tensorrt\.(plugin\.)?|nv\w+::(v_\d+_\d+::)?)", "", text)
    path = path.strip("'\"] ")
    candidates = [f"{module}.{name}" for module in MODULES for name in (path, path.removeprefix("I"))]
    return next((name for name in candidates if name in classes), "")


def _property_type(value: property) -> str:
    if inspect.isfunction(value.fget):
        return _annotation(value.fget.__annotations__.get("return"))
    found = overloads(value.fget.__doc__ or "", bound=False)
    return str(found[0]["returns"]) if found else ""


def _callable(function: Any, bound: bool) -> list[Json]:
    if inspect.isfunction(function):
        return [_signature(function, bound)]
    return overloads(function.__doc__ or "", bound and type(function).__name__ == "instancemethod")


def _signature(function: Any, bound: bool) -> Json:
    signature = inspect.signature(function)
    kinds = inspect.Parameter
    parameters = [
        {"name": each.name, "required": each.default is kinds.empty, "keyword": each.kind is not kinds.POSITIONAL_ONLY}
        for each in list(signature.parameters.values())[1 if bound else 0 :]
        if each.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]
    variadic = any(each.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) for each in signature.parameters.values())
    returns = _annotation(signature.return_annotation)
    return {"parameters": parameters, "variadic": variadic, "returns": returns}


def _constructor(cls: type) -> list[Json]:
    """Signatures of the constructor; none if objects are made elsewhere. A base takes what is passed on to it."""
    function = cls.__init__  # type: ignore[misc]
    if not inspect.isfunction(function):
        return overloads(function.__doc__ or "", bound=True)
    chain = [vars(each)["__init__"] for each in cls.__mro__ if inspect.isfunction(vars(each).get("__init__"))]
    made = _signature(chain[0], bound=True)
    for base in chain[1:]:
        if not made["variadic"]:
            break
        passed_on = _signature(base, bound=True)
        made["parameters"] += [{**each, "required": False} for each in passed_on["parameters"]]
        made["variadic"] = passed_on["variadic"]
    return [made]


def _assigned(cls: type) -> set[str]:
    """Attributes that a class written in Python gives its objects."""
    own = [each for each in cls.__mro__ if class_name(each) and each.__module__ != _NATIVE]
    return {name for each in own for name in _stored(inspect.getfile(each))[each.__name__]}


@cache
def _stored(source: str) -> dict[str, set[str]]:
    """Attributes of `self` that are assigned to in a file, by class."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(ast.parse(Path(source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            found[node.name] |= {
                each.attr
                for each in ast.walk(node)
                if isinstance(each, ast.Attribute)
                and isinstance(each.ctx, ast.Store)
                and ast.unparse(each.value) == "self"
                and not each.attr.startswith("_")
            }
    return found


def _annotation(annotation: Any) -> str:
    if annotation in (None, inspect.Signature.empty):
        return ""
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def _resolve(value: Any, classes: set[str], key: str = "") -> Any:
    """The same JSON with the types of signatures as names of classes."""
    if isinstance(value, dict):
        return {key: _resolve(each, classes, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_resolve(each, classes) for each in value]
    return type_name(value, classes) if key == "returns" else value


def describe() -> Json:
    describer = Describer()
    loaded = {name: importlib.import_module(module) for name, module in MODULES.items()}
    modules = {name: describer.module(module) for name, module in loaded.items()}
    made = {"version": loaded["trt"].__version__, "modules": modules, "classes": describer.classes}
    return _resolve(made, set(describer.classes))


if __name__ == "__main__":
    print(json.dumps(describe()))

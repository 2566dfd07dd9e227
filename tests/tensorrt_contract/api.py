# SPDX-License-Identifier: Apache-2.0
"""What one version of TensorRT offers, as data: modules, classes, their members and signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["module", "class", "callable", "value"]


@dataclass(frozen=True)
class Parameter:
    """`keyword` says whether it can be given by its name."""

    name: str
    required: bool
    keyword: bool


@dataclass(frozen=True)
class Overload:
    """One signature, without `self`.

    Attributes:
        variadic: it has *args or **kwargs, so that anything is accepted.
        returns: a class such as "trt.IBuilderConfig", "list[...]" of one, or "" for anything else.
    """

    parameters: tuple[Parameter, ...]
    variadic: bool
    returns: str

    def accepts(self, positional: int, keywords: Sequence[str], more: bool) -> bool:
        """Whether a call with that many positional arguments and those keywords fits; `more` are given by * or **."""
        if self.variadic:
            return True
        by_position = self.parameters[:positional]
        by_keyword = [each for each in self.parameters[positional:] if each.keyword and each.name in keywords]
        if len(by_position) < positional or len(by_keyword) < len(keywords):
            return False
        given = {*by_position, *by_keyword}
        return more or all(each in given for each in self.parameters if each.required)


@dataclass(frozen=True)
class Entity:
    """Something that a name stands for.

    Attributes:
        type: of a module or class its name, of a value its class ("" if that is none of TensorRT's), else "".
        settable: a value can be assigned to.
        overloads: signatures of a callable.
    """

    kind: Kind
    type: str = ""
    settable: bool = True
    overloads: tuple[Overload, ...] = ()


@dataclass(frozen=True)
class Api:
    """A version of TensorRT.

    Attributes:
        version: for instance (10, 8, 0, 43).
        members: by the name of a module ("trt" for tensorrt, "trtp" for tensorrt.plugin, "polygraphy" for
            polygraphy.backend.trt) or of a class ("trt.IBuilderConfig"), what it holds, inherited members too.
        constructors: signatures by class; none for a class whose objects are made elsewhere.
    """

    version: tuple[int, ...]
    members: Mapping[str, Mapping[str, Entity]]
    constructors: Mapping[str, tuple[Overload, ...]]

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Api:
        """From the JSON of describe.py."""
        classes = described["classes"]
        groups = {**described["modules"], **{name: each["members"] for name, each in classes.items()}}
        members = {
            group: {name: _entity(f"{group}.{name}", each) for name, each in content.items()}
            for group, content in groups.items()
        }
        constructors = {name: _overloads(each["constructor"]) for name, each in classes.items()}
        return cls(tuple(int(part) for part in described["version"].split(".")), members, constructors)

    def find(self, owner: str, name: str) -> Entity | None:
        """A member of a module or class, or None if it has none of that name."""
        return self.members[owner].get(name)

    def has(self, path: str) -> bool:
        """Whether a path such as "trt.BuilderFlag.TF32", "IBuilderConfig.max_num_tactics" or "trtp.aot_impl" exists."""
        first, *names = path.split(".")
        owner = first if first in ("trt", "trtp", "polygraphy") else "trt"
        for name in names if owner == first else [first, *names]:
            entity = self.find(owner, name) if owner in self.members else None
            if entity is None:
                return False
            owner = entity.type
        return True


def _entity(path: str, described: Mapping[str, Any]) -> Entity:
    match described["is"]:
        case "module":
            return Entity("module", "trtp" if path == "trt.plugin" else path)
        case "class":
            return Entity("class", described["class"])
        case "callable":
            return Entity("callable", overloads=_overloads(described["overloads"]))
        case _:
            return Entity("value", described["returns"], described["settable"])


def _overloads(described: Sequence[Mapping[str, Any]]) -> tuple[Overload, ...]:
    return tuple(
        Overload(tuple(Parameter(**each) for each in one["parameters"]), one["variadic"], one["returns"])
        for one in described
    )

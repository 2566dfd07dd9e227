# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile and a .dockerignore as Docker reads them, as far as ours go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::-([^}]*))?\})")
_FLAG = re.compile(r"--(\S+)\s+")


@dataclass(frozen=True)
class Instruction:
    """One instruction, its lines joined: RUN, its flags without the dashes, and the rest."""

    name: str
    flags: tuple[str, ...]
    value: str


@dataclass
class Stage:
    """A FROM with what follows it; the base as it is written."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Its instructions of one kind, in order."""
        return [each for each in self.instructions if each.name == name]


@dataclass(frozen=True)
class Dockerfile:
    """Build arguments before the first stage with their defaults, and the stages by name, in order."""

    arguments: dict[str, str]
    stages: dict[str, Stage]


def parse(text: str) -> Dockerfile:
    """Read a Dockerfile that has no here-documents and names all its stages."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for each in _instructions(text):
        if each.name == "FROM":
            base, keyword, name = each.value.split()
            assert keyword == "AS", each
            stage = stages[name] = Stage(name, base)
        elif stage is None:
            assert each.name == "ARG", each
            name, _, default = each.value.partition("=")
            arguments[name] = default
        else:
            stage.instructions.append(each)
    return Dockerfile(arguments, stages)


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for joined in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not joined.strip():
            continue
        name, value = joined.split(maxsplit=1)
        flags = []
        if name != "HEALTHCHECK":
            while (found := _FLAG.match(value)) is not None:
                flags.append(found[1])
                value = value[found.end() :]
        yield Instruction(name, tuple(flags), value.strip())


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """With $NAME, ${NAME} and ${NAME:-default} replaced; what is not set is empty."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[2], "") or found[3] or "", text)


def ignored(path: str, patterns: Sequence[str]) -> bool:
    """Whether a .dockerignore with these lines keeps a path out of the build: its last line that matches decides."""
    parts = path.split("/")
    paths = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    out = False
    for pattern in patterns:
        expression = _expression(pattern.removeprefix("!"))
        if any(expression.fullmatch(each) for each in paths):
            out = not pattern.startswith("!")
    return out


def _expression(pattern: str) -> re.Pattern[str]:
    """As Go's filepath.Match has it, and ** for any number of folders."""
    made = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/")):
        made += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece) or re.escape(piece)
    return re.compile(made)


def ignore_lines(root: Path) -> list[str]:
    """The patterns of a folder's .dockerignore."""
    lines = [line.strip() for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def context(root: Path) -> list[str]:
    """The files that a build is given, by their paths below `root`."""
    patterns = ignore_lines(root)
    found = []
    for folder, folders, files in os.walk(root):
        below = Path(folder).relative_to(root)
        # Exceptions are made for names in the root alone, so that nothing below an ignored folder comes back.
        folders[:] = [name for name in folders if not ignored((below / name).as_posix(), patterns)]
        found += [path for name in files if not ignored(path := (below / name).as_posix(), patterns)]
    return sorted(found)

# SPDX-License-Identifier: Apache-2.0
"""Adding models to a repository that a server may be using.

A version is written under a name that the server does not look at, and renamed when it is whole. What is there is never
overwritten; a configuration is replaced in one step, and only by one that takes and gives the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, OutputError
from .schema import CONFIG, ModelConfig, read
from .writing import SERVED

_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Published:
    """A model of a repository, and which version of it was added, or is the same; `new` says which of the two.

    Attributes:
        removed: versions that were taken away.
    """

    model: str
    version: int
    new: bool
    removed: tuple[int, ...] = ()


def publish(written: Path, repository: Path, *, keep: int | None = None) -> tuple[Published, ...]:
    """Add all models of a folder that `write_repository` wrote to a repository, made if it is not there.

    A model whose newest version is the same gets no other. A kill leaves whole versions only.

    Args:
        keep: versions of each model that stay, the newest; None keeps all.

    Raises:
        InputError: a model of that name is there and takes or gives something else, or runs in another backend.
        OutputError: the repository cannot be written, or another process is writing to it.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _locked(repository):
            models = _in_order(written)
            for model in models:
                _check(model, repository / model.name)
            _tidy(repository, models)
            added = [_add(model, repository) for model in models]
            return tuple(_pruned(each, repository, keep) for each in added)
    except OSError as error:
        raise OutputError(f"repository {repository} cannot be written: {error.strerror or error}.") from error


def versions_of(model: Path) -> list[int]:
    """Versions in a model's folder, as the server finds them: folders named by a number without leading zeros."""
    found = [each.name for each in model.iterdir() if each.is_dir()] if model.is_dir() else []
    return sorted(int(name) for name in found if name.isascii() and name.isdecimal() and not name.startswith("0"))


def _in_order(written: Path) -> list[Path]:
    """Ensembles last: they need the others."""
    models = [each for each in sorted(written.iterdir()) if each.is_dir()]
    return sorted(models, key=lambda model: read(model / CONFIG).platform == "ensemble")


def _check(new: Path, old: Path) -> None:
    """InputError if a server could not go on from one to the other."""
    if not old.exists():
        return
    before, after = read(old / CONFIG), read(new / CONFIG)
    way_out = "give it another name with --name, or another repository"
    if (before.backend, before.platform) != (after.backend, after.platform):
        kinds = f"{before.backend or before.platform}, not {after.backend or after.platform}"
        raise InputError(f"{old} is there already and runs in {kinds}; {way_out}.")
    for what, tensors in (("takes", "input"), ("gives", "output")):
        theirs, ours = (_tensors(config, tensors) for config in (before, after))
        if theirs != ours:
            raise InputError(f"{old} is there already and {what} {theirs}, not {ours}; {way_out}.")


def _tensors(config: ModelConfig, field: str) -> str:
    return ", ".join(f"{each.name} {list(each.dims)}" for each in getattr(config, field))


def _add(new: Path, repository: Path) -> Published:
    """One model, whole, or one more version of it."""
    (number,) = versions_of(new)
    old = repository / new.name
    if not old.exists():
        with _copied(new, repository) as copy:
            copy.rename(old)
        return Published(new.name, number, new=True)
    versions = versions_of(old)
    last = versions[-1] if versions else 0
    same = bool(versions) and _same(new / str(number), old / str(last))
    if not same:
        last += 1
        with _copied(new / str(number), old) as copy:
            copy.rename(old / str(last))
    for path in _beside(new):
        target = old / path.relative_to(new)
        if not (target.is_file() and filecmp.cmp(path, target, shallow=False)):
            target.parent.mkdir(exist_ok=True)
            with _copied(path, old) as copy:
                copy.replace(target)
    return Published(new.name, last, new=not same)


def _beside(model: Path) -> list[Path]:
    """Files beside the versions; the configuration last, which may name the others."""
    files = [path for path in model.rglob("*") if path.is_file() and not path.relative_to(model).parts[0].isdecimal()]
    return sorted(files, key=lambda path: path.name == CONFIG)


def _same(a: Path, b: Path) -> bool:
    """Whether two versions compute the same: hold the same files, but for what is told of them."""
    names = _computing(a)
    return names == _computing(b) and all(filecmp.cmp(a / name, b / name, shallow=False) for name in names)


def _computing(version: Path) -> list[str]:
    """Without what a server left beside the code."""
    return sorted({path.name for path in version.iterdir()} - {SERVED, "__pycache__"})


def _pruned(published: Published, repository: Path, keep: int | None) -> Published:
    """Without its oldest versions."""
    model = repository / published.model
    old = [] if keep is None else versions_of(model)[:-keep]
    for version in old:
        gone = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=model))
        (model / str(version)).rename(gone / "version")
        shutil.rmtree(gone)
    return Published(published.model, published.version, published.new, tuple(old))


@contextlib.contextmanager
def _copied(source: Path, folder: Path) -> Iterator[Path]:
    """A copy in `folder`, on disk, under a name that no server takes for a version; removed if it stays there."""
    staging = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        staging.chmod(0o755)
        copy = staging / source.name
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copy2(source, copy)
        for path in (copy, *copy.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        yield copy
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _tidy(repository: Path, models: list[Path]) -> None:
    """Remove what killed runs left; nobody else is writing now."""
    for folder in (repository, *(repository / model.name for model in models)):
        for left in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """The repository to this process alone."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OutputError(f"repository {repository} is being written by another process; try again.") from error
    finally:
        os.close(descriptor)

# SPDX-License-Identifier: Apache-2.0
"""Adding models to a repository that a server may be using.

A version is written under a name that the server does not look at, and renamed when it is whole. What is there is never
overwritten; a configuration is replaced in one step, and only by one that takes and gives the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import filecmp
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, OutputError
from .schema import CONFIG, ModelConfig, data_type_name, read
from .writing import SERVED

_PARTIAL = ".partial-"
_NOT_HERE = (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
"""How a place refuses a model that is to be renamed into the repository."""


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
                _check_policy(model, repository / model.name, keep)
            _tidy(repository)
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


def _check_policy(new: Path, old: Path, keep: int | None) -> None:
    """InputError if the configuration asks for a version that will not be there."""
    wanted = set(read(new / CONFIG).version_policy.specific.versions)
    if not wanted:
        return
    versions = [*versions_of(old), *([] if _is_newest(new, old) else [_number(old)])]
    left = versions if keep is None else versions[-keep:]
    if missing := sorted(wanted - set(left)):
        have = ", ".join(map(str, left))
        raise InputError(f"--version-policy asks for version {missing[0]} of {old}, which will have {have}.")


def _tensors(config: ModelConfig, field: str) -> str:
    tensors = getattr(config, field)
    return ", ".join(f"{each.name} {data_type_name(each.data_type)} {list(each.dims)}" for each in tensors)


def _add(new: Path, repository: Path) -> Published:
    """One model, whole, or one more version of it."""
    old = repository / new.name
    if not old.exists():
        _move_in(new, repository)
        return Published(new.name, versions_of(new)[-1], new=True)
    same, number = _is_newest(new, old), _number(old)
    if not same:
        with _copied(_version(new), old) as copy:
            copy.rename(old / str(number))
    for path in _beside(new):
        target = old / path.relative_to(new)
        if not (target.is_file() and filecmp.cmp(path, target, shallow=False)):
            target.parent.mkdir(exist_ok=True)
            with _copied(path, old) as copy:
                copy.replace(target)
    return Published(new.name, number - 1 if same else number, new=not same)


def _version(new: Path) -> Path:
    """The only version of a model that was written."""
    (number,) = versions_of(new)
    return new / str(number)


def _number(old: Path) -> int:
    """What the next version of a model is called."""
    return max(versions_of(old), default=0) + 1


def _is_newest(new: Path, old: Path) -> bool:
    """Whether the newest version of a model is what was written."""
    return bool(versions_of(old)) and _same(_version(new), old / str(_number(old) - 1))


def _move_in(new: Path, repository: Path) -> None:
    """A whole new model, in one step.

    A server takes every folder of its repository for a model, and is not ready while one does not load: it is written
    beside the repository, or in the folder of a model, where a server passes over what is not a number.
    """
    folder = repository.resolve()
    models = [each for each in sorted(folder.iterdir()) if each.is_dir()]
    beside = [folder.parent] if folder.parent.stat().st_dev == folder.stat().st_dev else []
    places = [*beside, *models[:1], folder]
    for place in places:
        try:
            with _copied(new, place, prefix=_prefix(folder) if place == folder.parent else _PARTIAL) as copy:
                copy.rename(folder / new.name)
            return
        except OSError as error:
            if error.errno not in _NOT_HERE or place == places[-1]:
                raise


def _prefix(repository: Path) -> str:
    """Of what is written beside a repository, for it."""
    return f".{repository.name}.model-"


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
def _copied(source: Path, folder: Path, prefix: str = _PARTIAL) -> Iterator[Path]:
    """A copy in `folder`, on disk, under a name that no server takes for a version; removed if it stays there."""
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    try:
        for path in (source, *sorted(source.rglob("*"))):
            copy = staging / source.name / path.relative_to(source)
            if path.is_dir():
                copy.mkdir()
                continue
            shutil.copy2(path, copy)
            with copy.open("rb") as file:
                os.fsync(file.fileno())
        yield staging / source.name
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _tidy(repository: Path) -> None:
    """Remove what killed runs left; nobody else is writing now."""
    folder = repository.resolve()
    for left in (
        *folder.parent.glob(f"{glob.escape(_prefix(folder))}*"),
        *folder.glob(f"{_PARTIAL}*"),
        *folder.glob(f"*/{_PARTIAL}*"),
    ):
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

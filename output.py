# SPDX-License-Identifier: Apache-2.0
"""The output folder: written beside its place and put there in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutputError

MANIFEST = "manifest.json"
TOOL = "metaformer-export"
_CACHE = "__pycache__"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""How a file system or kernel without unnamed files refuses one."""


def check_output(folder: Path) -> dict[str, Any] | None:
    """Make sure that `folder` can be made, or replaced because all in it is ours; leaves no trace.

    Returns:
        The manifest of the export that would be replaced, None if there is none.

    Raises:
        OutputError: it is a file, a link or a mount point, cannot be written, or holds something else.
    """
    try:
        old = _replaceable(folder)
        ancestor = next(each for each in folder.absolute().parents if each.exists())
        if not ancestor.is_dir():
            raise OutputError(f"output {folder} lies below {ancestor}, which is a file.")
        _try_to_write(folder, ancestor)
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be written: {error.strerror}.") from error
    return old


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns an OSError (a full disk, for instance) into an OutputError that names the folder."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; put in its place when the block ends well.

    A kill at any moment leaves either the old folder or the new one at `folder` (where the system
    has no atomic exchange of two names, the next run restores the old one); what a killed run left
    beside it is removed by the next. After an error nothing is left behind.
    """
    named, folder = folder, _absolute(folder)
    made: list[Path] = []
    staging: Path | None = None
    try:
        with contextlib.ExitStack() as stack:
            with writing(named):
                made = _make_parents(folder.parent)
                _tidy(folder)
                staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(folder), dir=folder.parent))
                stack.enter_context(_held(staging))
                staging.chmod(0o755)  # mkdtemp's 0700 would keep a server's user out
            yield staging
            with writing(named):
                _sync(staging)
                _replaceable(folder)
                put_in_place(staging, folder)
    except BaseException:
        _remove(staging, made)
        raise
    _remove(staging, [])


def _try_to_write(folder: Path, ancestor: Path) -> None:
    """OSError if nothing can be made below `ancestor`. A file without a name, so that a kill leaves nothing."""
    with contextlib.suppress(FileNotFoundError):
        (ancestor / f"{_staging_prefix(folder)}________").stat()  # too long a name, for one
    try:
        os.close(os.open(ancestor, os.O_TMPFILE | os.O_WRONLY))
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_UNNAMED_FILES:
            raise
        Path(tempfile.mkdtemp(prefix=_staging_prefix(folder), dir=ancestor)).rmdir()


def _replaceable(folder: Path) -> dict[str, Any] | None:
    """The manifest of what is at `folder`, None if nothing is; OutputError if it must not be replaced."""
    if Path.cwd().is_relative_to(_absolute(folder)):
        raise OutputError(f"output {folder} is the current folder or above it; give a folder inside it.")
    if folder.is_symlink():
        raise OutputError(f"output {folder} is a symbolic link; give the folder itself.")
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise OutputError(f"output {folder} is a file; give a folder.")
    if os.path.ismount(folder):
        raise OutputError(f"output {folder} is a mount point, which cannot be replaced; give a folder inside it.")
    manifest = _our_manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    foreign = sorted(_content(folder) - ({MANIFEST, *manifest["outputs"]} if manifest else set()))
    if foreign:
        raise OutputError(
            f"output folder {folder} holds files that are not from metaformer-export, {foreign[0]} for one; "
            "move them or give another folder."
        )
    return manifest


def _content(folder: Path) -> set[str]:
    """Files by their paths below `folder`, and empty folders at its top, but for what Python left beside its code."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    empty = {path.relative_to(folder) for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())}
    return {path.as_posix() for path in files | empty if _CACHE not in path.parts}


def _absolute(folder: Path) -> Path:
    """Without dots, and without following links: those are refused, not replaced."""
    return Path(os.path.abspath(folder))  # noqa: PTH100


def _our_manifest(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    ours = isinstance(content, dict) and content.get("tool") == TOOL and isinstance(content.get("outputs"), dict)
    return content if ours else None


def _staging_prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def _make_parents(parent: Path) -> list[Path]:
    """Create what is missing of a path; returns what was created, deepest first."""
    missing = [each for each in (parent, *parent.parents) if not each.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder for as long as this process lives; unlike a process number, that means something
    in another container, too.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Restore or remove what killed runs left beside `folder`."""
    name = glob.escape(folder.name)
    for old in folder.parent.glob(f".{name}.old-*"):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
    for left in folder.parent.glob(f".{name}.partial-*"):
        with contextlib.suppress(OSError), _held(left):
            shutil.rmtree(left, ignore_errors=True)


def put_in_place(staging: Path, folder: Path) -> None:
    """Afterwards `folder` is the new one, and what it was before, if anything, is at `staging`."""
    if not folder.exists():
        staging.rename(folder)
    elif not _exchange(staging, folder):
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        folder.rename(old)
        staging.rename(folder)
        old.rename(staging)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def _sync(folder: Path) -> None:
    """Have the files on disk before the folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _remove(staging: Path | None, made: list[Path]) -> None:
    if staging is not None:
        shutil.rmtree(staging, ignore_errors=True)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()

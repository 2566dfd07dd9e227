# SPDX-License-Identifier: Apache-2.0
"""The output folder: written beside its place and put there in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import OutputError

MANIFEST = "manifest.json"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_output(folder: Path) -> None:
    """Raise OutputError unless `folder` can be made, or replaced because it is one of ours; leaves no trace."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"output {folder} is a file; give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise OutputError(
            f"output folder {folder} holds files that are not from metaformer-export; give another or empty it."
        )
    ancestor = next(each for each in (folder.absolute().parent, *folder.absolute().parents) if each.exists())
    if not ancestor.is_dir():
        raise OutputError(f"output {folder} lies below {ancestor}, which is a file.")
    try:
        Path(tempfile.mkdtemp(prefix=".metaformer-export-", dir=ancestor)).rmdir()
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be written: {error.strerror} ({ancestor}).") from error


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; put in its place when the block ends well.

    A kill at any moment leaves either the old folder or the new one at `folder`; what a killed run
    left beside it is removed by the next. An OSError (a full disk, for instance) becomes an
    OutputError, and nothing is left behind.
    """
    folder = folder.absolute()
    made = _make_parents(folder.parent)
    prefix = f".{folder.name}.partial-"
    for left in folder.parent.glob(f"{prefix}*"):
        if not _alive(left.name.removeprefix(prefix)):
            shutil.rmtree(left, ignore_errors=True)
    staging = folder.parent / f"{prefix}{os.getpid()}"
    try:
        try:
            staging.mkdir()
            yield staging
            _sync(staging)
            _put_in_place(staging, folder)
        except OSError as error:
            raise OutputError(f"output folder {folder} cannot be written: {error.strerror or error}.") from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(staging, ignore_errors=True)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write one file through `write`; an OutputError says which one failed and why."""
    try:
        write(path)
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written: {error.strerror or error}.") from error


def _make_parents(parent: Path) -> list[Path]:
    """Create what is missing of a path; returns what was created, deepest first."""
    missing = [each for each in (parent, *parent.parents) if not each.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{parent} cannot be made: {error.strerror}.") from error
    return missing


def _put_in_place(staging: Path, folder: Path) -> None:
    """Afterwards `folder` is the new one, and what it was before, if anything, is at `staging`."""
    if not folder.exists():
        staging.rename(folder)
    elif not _exchange(staging, folder):
        # No atomic exchange on this system: between the two renames only the old folder's new name exists.
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


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

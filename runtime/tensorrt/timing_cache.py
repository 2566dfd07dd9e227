# SPDX-License-Identifier: Apache-2.0
"""A file of measured tactics, so that the next build of a like layer need not time it again.

It holds what TensorRT serialises and nothing else, so that trtexec can use it as well. Builds may run side by
side: the file is locked while it is read and while it is merged and replaced, not during a build.

A file that the user named has to be usable before the build begins. Nobody asked for that in the cache folder, so that
a build goes on without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import EngineError, InputError
from .environment import Environment

if TYPE_CHECKING:
    import tensorrt as trt


def place_of(named: str | Path | None, found: Environment) -> tuple[Path | None, str]:
    """Where measurements are kept; None, and why, where the user named no file and none can be kept.

    Raises:
        InputError: the file that the user named cannot be used.
    """
    try:
        path = default_path(found) if named is None else Path(named)
        _read(path)
    except InputError as error:
        if named is not None:
            raise
        return None, f"every layer is timed anew: {error}"
    return path, ""


def default_path(found: Environment) -> Path:
    """In the user's cache folder, one for each GPU and exact version: measurements hold for no other.

    Raises:
        InputError: the user has no home folder, as in a container that runs under a number alone.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError as error:
        raise InputError("there is no home folder for the timing cache; give a file with --timing-cache.") from error
    gpu = re.sub(r"[^a-z0-9]+", "-", found.gpu.lower()).strip("-")
    name = f"{gpu}-sm{found.architecture}-tensorrt-{found.version_text}.timing"
    return Path(home) / "metaformer-export" / "timing" / name


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else reads or replaces the file meanwhile.

    Raises:
        InputError: its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / f"{path.name}.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the timing cache {path} cannot be written ({error.strerror}); give another file with --timing-cache."
        ) from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise InputError(
                f"the timing cache {path} cannot be locked ({error.strerror}); give another file with --timing-cache."
            ) from error
        yield


def load_into(config: trt.IBuilderConfig, path: Path) -> tuple[trt.ITimingCache, str]:
    """Give the builder what the file has measured, or an empty cache where it has nothing for this GPU and version.

    Returns:
        the cache, which has to outlive the build, and what the user should know, "" for nothing.

    Raises:
        InputError: the file cannot be read, or not be written afterwards.
    """
    content = _read(path)
    cache = _cache(config, content) if content else None
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache, ""
    empty: trt.ITimingCache = config.create_timing_cache(b"")
    if not config.set_timing_cache(empty, ignore_mismatch=False):
        return empty, f"TensorRT takes no timing cache; nothing is kept in {path}."
    reason = "of another GPU" if cache is not None else "damaged or of another TensorRT"
    return empty, f"the timing cache {path} is {reason}; it is made again." if content else ""


def save_from(config: trt.IBuilderConfig, path: Path) -> None:
    """Merge the builder's measurements with what other builds have saved meanwhile, and replace the file.

    Raises:
        InputError: its folder cannot be written.
        OSError: the file cannot be.
        EngineError: the builder gives no measurements.
    """
    cache: trt.ITimingCache | None = config.get_timing_cache()
    if cache is None:
        raise EngineError("the builder kept no measurements.")
    with locked(path):
        others = _cache(config, path.read_bytes()) if path.is_file() else None
        if others is not None:
            cache.combine(others, ignore_mismatch=False)  # takes nothing from a file of another GPU
        measured: trt.IHostMemory | None = cache.serialize()
        if measured is None:
            raise EngineError("the builder's measurements cannot be written down.")
        replace_file(path, bytes(measured))


def replace_file(path: Path, content: bytes) -> None:
    """Written beside it and renamed, so that a kill leaves the old file or the new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes:
    """Under the lock; empty where nothing is there yet."""
    with locked(path):
        try:
            return path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise InputError(
                f"the timing cache {path} cannot be read ({error.strerror}); give another file with --timing-cache."
            ) from error


def _cache(config: trt.IBuilderConfig, content: bytes) -> trt.ITimingCache | None:
    """TensorRT answers None, or raises, for bytes that it did not write."""
    try:
        cache: trt.ITimingCache | None = config.create_timing_cache(content)
    except (RuntimeError, TypeError, ValueError):
        return None
    return cache

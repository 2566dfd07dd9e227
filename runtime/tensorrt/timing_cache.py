# SPDX-License-Identifier: Apache-2.0
"""A file of measured tactics, so that the next build of a like layer need not time it again.

It holds what TensorRT serialises and nothing else, so that trtexec can use it as well. Builds may run side by
side: the file is locked while it is read and while it is merged and replaced, not during a build.
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

from ...errors import InputError
from .environment import Environment

if TYPE_CHECKING:
    import tensorrt as trt


def default_path(found: Environment) -> Path:
    """In the user's cache folder, one for each GPU and exact version: measurements hold for no other."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
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
        lock = path.with_name(path.name + ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the timing cache {path} cannot be written ({error.strerror}); give another file with --timing-cache."
        ) from error
    with lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # the kind of lock that Polygraphy takes when it reads
        yield


def loadable(path: Path) -> str | None:
    """What Polygraphy is to load, under the same lock; None where nothing is there yet.

    Raises:
        InputError: the file could not be written afterwards.
    """
    with locked(path):
        return str(path) if path.is_file() and path.stat().st_size else None


def is_damaged(config: trt.IBuilderConfig, path: Path) -> bool:
    """Whether TensorRT takes nothing from the file: it is of another TensorRT, or not whole."""
    return path.is_file() and _cache(config, path.read_bytes()) is None


def save_from(config: trt.IBuilderConfig, path: Path) -> None:
    """Merge the builder's measurements with what other builds have saved meanwhile, and replace the file."""
    cache: trt.ITimingCache | None = config.get_timing_cache()
    if cache is None:
        return
    with locked(path):
        others = _cache(config, path.read_bytes()) if path.is_file() else None
        if others is not None:
            cache.combine(others, ignore_mismatch=False)
        replace_file(path, bytes(cache.serialize()))


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


def _cache(config: trt.IBuilderConfig, content: bytes) -> trt.ITimingCache | None:
    """TensorRT answers None, or raises, for bytes that it did not write."""
    try:
        cache: trt.ITimingCache | None = config.create_timing_cache(content)
    except (RuntimeError, TypeError, ValueError):
        return None
    return cache

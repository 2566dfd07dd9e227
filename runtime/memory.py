# SPDX-License-Identifier: Apache-2.0
"""Memory that is not needed for now, given back to the system."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ..export.serialize import WEIGHTS

_DONTNEED = 4
_MAPPED = re.compile(rf"([0-9a-f]+)-([0-9a-f]+) r[-w]-s .*{re.escape(WEIGHTS)}(?: \(deleted\))?")


def trim() -> None:
    """Have glibc give back what it keeps for later, which after a session was opened or closed is more than a model,
    and drop mapped weights.

    Other systems keep less, or have no such functions.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    drop_mapped_weights()


def drop_mapped_weights() -> None:
    """Drop the pages of files of weights that are mapped, which are read again by whoever needs them: hardly anybody,
    once the first run of a session has packed them. Other systems keep them.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    for start, stop in _mapped_weights():
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONTNEED)


def _mapped_weights() -> Iterator[tuple[int, int]]:
    """Shared mappings alone: of those the file has all that was ever written to their pages."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        if found := _MAPPED.fullmatch(line):
            yield int(found[1], 16), int(found[2], 16)

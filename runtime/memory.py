# SPDX-License-Identifier: Apache-2.0
"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Have glibc give back what it keeps for later, which after a session was opened or closed is more than a model.

    Other C libraries keep less, and have no such function.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)

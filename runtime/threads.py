# SPDX-License-Identifier: Apache-2.0
"""How many threads everything that is compared runs with."""

from __future__ import annotations

import os


def available_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# SPDX-License-Identifier: Apache-2.0
"""Latencies side by side: every candidate in turn, round after round, on the same machine at the same time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Run = Callable[[], object]

_WARM_UP = 2
_SETTLE_S = 0.01
_FEW_ROUNDS = 10
_WIDE_SPREAD = 1.5


def interleaved(runs: Mapping[str, Run], *, rounds: int = 20, seconds: float = 30.0) -> dict[str, list[float]]:
    """Wall time in ms of each call, round by round.

    Each call follows an untimed one of its own after a pause: a thread pool that has just worked
    spins for a while, and would take a core from whoever comes next.

    Args:
        rounds: at most this many rounds, at least three.
        seconds: stop after a round that ends past this time.
    """
    for run in runs.values():
        for _ in range(_WARM_UP):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(1, rounds + 1):
        for name, run in runs.items():
            time.sleep(_SETTLE_S)
            run()
            begin = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - begin))
        if done >= 3 and time.perf_counter() - started > seconds:
            break
    return times


def median(times: list[float]) -> float:
    """In the unit of the times."""
    return float(np.median(times))


def p90(times: list[float]) -> float:
    """90th percentile, in the unit of the times."""
    return float(np.percentile(times, 90))


def unstable(times: dict[str, list[float]]) -> str:
    """Why these figures should not be relied on, or "" if they agree with each other.

    Contention does not hit all alike: a runtime that waits for all its threads suffers most.
    """
    rounds = min(len(each) for each in times.values())
    if rounds < _FEW_ROUNDS:
        return f"only {rounds} rounds could be timed"
    name = max(times, key=lambda each: p90(times[each]) / median(times[each]))
    spread = p90(times[name]) / median(times[name])
    return f"the 90th percentile of {name} is {spread:.1f} times its median" if spread > _WIDE_SPREAD else ""


def machine() -> str:
    """Processor and operating system, for the record."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"

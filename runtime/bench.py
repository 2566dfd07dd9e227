# SPDX-License-Identifier: Apache-2.0
"""Latencies side by side: every candidate in turn, round after round, on the same machine at the same time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

Run = Callable[[], object]

RUNS = 2
"""Timed runs of one turn."""
_SETTLE_S = 0.05
_FEW_RUNS = 10
_WIDE_SPREAD = 1.5


def interleaved(
    runs: Mapping[str, Run],
    *,
    rounds: int = 10,
    least: int = 1,
    seconds: float = 30.0,
    leave: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Wall time in ms of each call, `RUNS` in a round.

    They follow an untimed one of their own: a thread pool that has just worked spins for a while (ONNX Runtime's for
    35 to 50 ms), and would take a core from whoever comes next. A pause goes before a run that is not twice as long.

    Args:
        rounds: at most this many.
        least: at least this many.
        seconds: stop after a round that ends past this time.
        leave: called when a turn is over, for instance to give memory back, which the untimed run takes again.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(1, rounds + 1):
        for name, run in runs.items():
            if not times[name] or times[name][-1] < 2e3 * _SETTLE_S:
                time.sleep(_SETTLE_S)
            run()
            for _ in range(RUNS):
                begin = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - begin))
            leave()
        if done >= least and time.perf_counter() - started > seconds:
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
    runs = min(len(each) for each in times.values())
    if runs < _FEW_RUNS:
        return f"only {runs} runs could be timed"
    name = max(times, key=lambda each: p90(times[each]) / median(times[each]))
    spread = p90(times[name]) / median(times[name])
    return f"the 90th percentile of {name} is {spread:.1f} times its median" if spread > _WIDE_SPREAD else ""


def machine() -> str:
    """Processor with its vector instructions, and operating system, for the record.

    A virtual machine may call two generations of processors by one name.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()}, {os.cpu_count()} cores, {vectors}, {platform.system()} {platform.machine()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"

# SPDX-License-Identifier: Apache-2.0
"""Times by the GPU's own clock, candidates in turn, and the bandwidth of its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from metaformer_export.runtime.bench import median

Call = Callable[[], object]

DEVICE = "cuda"
LEAST_ROUNDS = 5
_COPIED = 1 << 30
"""Bytes; many times what the L2 cache holds."""
_CYCLES_PER_S = 2e9
"""About a GPU's clock."""
_LONGEST_START_S = 0.05


@dataclass
class Times:
    """Of one candidate, an entry for each timed region, in ms of one call.

    Attributes:
        gpu: from the region's first to its last event on the GPU.
        host: until the calls came back; what is timed as it is called takes at least that.
        late: regions in which the GPU began before all was queued, and may have waited for the host.
    """

    gpu: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    late: int = 0


def interleaved(
    candidates: Mapping[str, Sequence[Call]], *, rounds: int, seconds: float, queued: bool
) -> dict[str, Times]:
    """All candidates in turn, round after round, after three untimed passes of each.

    Args:
        candidates: calls that are timed together, one after the other, their results kept until the last has ended.
            With inputs of their own, and all of them larger than the L2 cache, none finds its inputs there.
        rounds: at most this many.
        seconds: no new round past it, but at least LEAST_ROUNDS.
        queued: the GPU is kept busy while calls are queued, so that it never waits for the host: the time is of the
            GPU's work alone. If not, it is what a caller sees.
    """
    starts = {name: _warmed_up(calls) if queued else 0.0 for name, calls in candidates.items()}
    if not queued:
        for calls in candidates.values():
            _warmed_up(calls)
    times = {name: Times() for name in candidates}
    began = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for name, calls in candidates.items():
            starts[name] = _timed(calls, starts[name], times[name])
    return times


def _warmed_up(calls: Sequence[Call]) -> float:
    """Seconds that the GPU must be kept busy so that the host can queue the calls, with room to spare."""
    for _ in range(3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        kept = [call() for call in calls]
        host = time.perf_counter() - began
        del kept
    return min(2 * host + 2e-4, _LONGEST_START_S)


def _timed(calls: Sequence[Call], start: float, times: Times) -> float:
    """Note one timed region. Where the host was late, it is timed again with a longer start; returns the one used."""
    gpu, host, late = _region(calls, start)
    while late and start < _LONGEST_START_S:
        start = min(2 * start, _LONGEST_START_S)
        gpu, host, late = _region(calls, start)
    times.gpu.append(gpu)
    times.host.append(host)
    times.late += late
    return start


def _region(calls: Sequence[Call], start: float) -> tuple[float, float, bool]:
    """Ms of a call on the GPU and on the host, and whether the GPU began before all was queued."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if start:
        torch.cuda._sleep(int(start * _CYCLES_PER_S))
    began = time.perf_counter()
    first.record()
    kept = [call() for call in calls]
    last.record()
    host = time.perf_counter() - began
    late = start > 0 and first.query()
    last.synchronize()
    del kept
    return first.elapsed_time(last) / len(calls), 1e3 * host / len(calls), late


def copy_bandwidth() -> float:
    """Bytes read and written per second by the copy of a large tensor: what nothing that moves memory can beat."""
    source = torch.empty(_COPIED // 4, device=DEVICE).normal_()
    target = torch.empty_like(source)
    times = interleaved({"copy": [lambda: target.copy_(source)]}, rounds=20, seconds=1, queued=True)
    return 2 * _COPIED / (median(times["copy"].gpu) / 1e3)


def sets_beyond_cache(set_bytes: int) -> int:
    """How many sets of inputs and outputs are together four times as large as the L2 cache, at least two."""
    cache: int = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    return max(2, -(-4 * cache // set_bytes))

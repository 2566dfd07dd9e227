# SPDX-License-Identifier: Apache-2.0
"""Latency over batch size, and what a dynamic batcher should make of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ...progress import Step, untold

GAIN = 1.2
"""A larger batch is worth waiting for if it gives this many times the images per second of the one before."""
_SHARE_TO_WAIT = 0.1
_LONGEST_WAIT_MS = 5.0
_LEAST_ROUNDS = 3
_SECONDS = 4.0
_LONG = 1.0
"""Seconds of a batch after which no larger one is tried."""


@dataclass(frozen=True)
class Curve:
    """Milliseconds of a batch, by batch size in growing order; `source` says what ran it and where."""

    points: tuple[tuple[int, float], ...]
    source: str

    def preferred(self, largest: int) -> tuple[int, ...]:
        """Batch sizes up to `largest` that are worth waiting for; () where batching gains nothing, or is not known."""
        found: list[int] = []
        milliseconds = {batch: ms / batch for batch, ms in self.points if batch <= largest}
        for batch, each in milliseconds.items():
            if batch > (least := min(milliseconds)) and each * GAIN <= milliseconds[found[-1] if found else least]:
                found.append(batch)
        return tuple(found)

    def wait_ms(self, largest: int) -> float:
        """How long a request may wait for others: a tenth of what the first preferred batch takes, 5 ms at most; 0
        where none is preferred.
        """
        preferred = self.preferred(largest)
        return min(_LONGEST_WAIT_MS, _SHARE_TO_WAIT * dict(self.points)[preferred[0]]) if preferred else 0.0

    def images_per_second(self) -> float | None:
        """At the best batch size; None if nothing was measured."""
        return max((1000 * batch / milliseconds for batch, milliseconds in self.points), default=None)


def measured(run: Callable[[int], object], largest: int, source: str, step: Step = untold) -> Curve:
    """The curve of 1, 2, 4, ... images, as far as `largest` or a batch that takes a second.

    The fastest of interleaved rounds, so that what disturbs the machine for a while makes no size look better than
    another.

    Args:
        run: runs a batch of that size once.
    """
    sizes = [*(1 << n for n in range(largest.bit_length()) if 1 << n < largest), largest]
    best: dict[int, float] = {}
    with step("first runs"):
        for batch in sizes:
            best[batch] = _seconds(run, batch)
            if best[batch] > _LONG:
                break
    with step("rounds"):
        started, rounds = time.perf_counter(), 0
        while rounds < _LEAST_ROUNDS or time.perf_counter() - started < _SECONDS:
            best = {batch: min(known, _seconds(run, batch)) for batch, known in best.items()}
            rounds += 1
    return Curve(tuple((batch, round(1000 * seconds, 3)) for batch, seconds in best.items()), source)


def _seconds(run: Callable[[int], object], batch: int) -> float:
    started = time.perf_counter()
    run(batch)
    return time.perf_counter() - started

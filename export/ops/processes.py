# SPDX-License-Identifier: Apache-2.0
"""Work shared out to processes, one of which may die alone: a compiler that aborts takes its process along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def each_in_a_process(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[int, Result | None]]:
    """The place of every job with its result, as they come; None for a job that its process died of.

    A process that dies takes all others along, and nobody can tell whose job it was. What is left then goes through
    one process, in order, where the first to get no result is the one.

    Args:
        function: importable; jobs and results are pickled. Its first exception is raised here, and ends it all.
        workers: processes at a time.
    """
    left = list(range(len(jobs)))
    workers = min(workers, len(jobs))
    while left:
        done = set()
        with _pool(workers) as pool:
            places: dict[Future[Result], int] = {}
            with suppress(BrokenProcessPool):
                places.update((pool.submit(function, jobs[place]), place) for place in left)
            for future in as_completed(places):
                if isinstance(future.exception(), BrokenProcessPool):
                    continue
                done.add(places[future])
                yield places[future], future.result()
        left = [place for place in left if place not in done]
        if left and workers == 1:
            yield left.pop(0), None
        workers = 1


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes started afresh, without copies of this one's threads, which do not outlive it."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """First thing in a new process. Ctrl-C, which a terminal sends to all of a command, ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's processes would wait forever for the work of one that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

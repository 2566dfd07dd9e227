# SPDX-License-Identifier: Apache-2.0
"""Sessions that are opened on other threads before they are asked for: opening one keeps a single core busy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Begin(Protocol):
    """Takes what opens a session, and gives what waits for it."""

    def __call__(self, opener: Callable[[], T], /) -> Callable[[], T]:
        """What returns, or raises, as the opener does."""


@contextmanager
def ahead(threads: int) -> Iterator[Begin]:
    """Begin to open as many sessions at once, in the order in which they are given; with 0 none is opened ahead.

    All that were opened stay in memory until the block ends, and nothing runs any more after it; only who
    interrupts it does not wait.
    """
    if not threads:
        yield _as_it_is
        return
    pool = ThreadPoolExecutor(threads, "open")

    def begin(opener: Callable[[], T], /) -> Callable[[], T]:
        return pool.submit(opener).result

    try:
        yield begin
    except Exception:
        pool.shutdown(cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _as_it_is(opener: Callable[[], T], /) -> Callable[[], T]:
    return opener

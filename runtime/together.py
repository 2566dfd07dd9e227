# SPDX-License-Identifier: Apache-2.0
"""Sessions that are opened at once, on threads of their own: opening one keeps a single core busy for seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Begin(Protocol):
    """Takes what opens a session, and gives what one asks for it."""

    def __call__(self, opener: Callable[[], T], /) -> Callable[[], T]:
        """What returns, or raises, as the opener does; what was opened with others is the same each time."""


@contextmanager
def together(threads: int) -> Iterator[Begin]:
    """Open sessions on so many threads, in the order in which they are given; with 0, each when it is asked for.

    Who asks for one has all opened that were given till then, and waits for all: a model that runs meanwhile would
    fight for the cores, with threads that spin while they wait for each other. All stay in memory as long as somebody
    may ask for them, and nothing is opened any more after the block; only who interrupts it does not wait.
    """
    if not threads:
        yield when_asked
        return
    pool = ThreadPoolExecutor(threads, "open")
    given: list[Callable[[], None]] = []

    def begin(opener: Callable[[], T], /) -> Callable[[], T]:
        result: Future[T] = Future()
        given.append(lambda: _open(opener, result))

        def ask() -> T:
            begun = [pool.submit(each) for each in given]
            given.clear()
            wait(begun)
            return result.result()

        return ask

    try:
        yield begin
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def when_asked(opener: Callable[[], T], /) -> Callable[[], T]:
    """Opens nothing before it is asked for, and anew each time."""
    return opener


def _open(opener: Callable[[], T], result: Future[T]) -> None:
    try:
        result.set_result(opener())
    except BaseException as error:
        result.set_exception(error)

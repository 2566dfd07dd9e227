# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C during a long call into C++, which does not look for signals itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")
_LOOK_S = 0.1
"""Python handles a signal between two bytecodes of the main thread, so that thread must not sleep for long."""


def cancellable(job: Callable[[], Result], cancel: Callable[[], None]) -> Result:
    """The job's result, from a thread of its own; KeyboardInterrupt when it was interrupted and has stopped.

    Args:
        cancel: asks the job to stop; called once, from this thread.
    """
    future: Future[Result] = Future()
    ended = threading.Event()

    def work(outcome: Future[Result]) -> None:
        try:
            outcome.set_result(job())
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            del outcome  # it holds the error, whose traceback holds this frame
            ended.set()

    worker = threading.Thread(target=work, args=(future,), name="engine", daemon=True)
    try:
        worker.start()
        while not ended.wait(_LOOK_S):
            pass
    except KeyboardInterrupt:
        cancel()
        while worker.is_alive() and not ended.wait(_LOOK_S):
            pass
        raise
    try:
        return future.result()
    finally:
        del future  # as above: a cycle would keep what the job had, a builder's memory, until a garbage collection

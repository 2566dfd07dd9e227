# SPDX-License-Identifier: Apache-2.0
"""Python's collector of cycles, while graphs are made, rewritten and run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No collection inside, one at the end.

    Looking through hundreds of thousands of living nodes again and again, to find next to nothing, takes a fifth of
    the time of tracing. Afterwards there is something: nodes and values refer to each other, and those that a
    rewrite replaced would keep their weights in memory.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with set_aside():
            try:
                yield
            finally:
                gc.collect()
    finally:
        if enabled:
            gc.enable()


@contextmanager
def set_aside() -> Iterator[None]:
    """Collections inside leave alone what was there before: modules of torch and the graphs, half a million objects.

    Where the program has frozen objects of its own, nothing is done: Python cannot tell them apart afterwards.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

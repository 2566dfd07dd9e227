# SPDX-License-Identifier: Apache-2.0
"""Who is told what an export is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Told what is going on; the command line shows it."""

    def stage(self, title: str) -> AbstractContextManager[Callable[[str], None]]:
        """Around one stage; what it yields takes a word on the stage's result."""

    def step(self, title: str) -> AbstractContextManager[None]:
        """Around a part of a stage that may take a while."""

    def count(
        self, title: str, total: int | None, *, unit: str = "images"
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Around work on images or other things; what it yields is told of each that is done, so many at a time."""

    def note(self, text: str) -> None:
        """Something the user should know."""


Step = Callable[[str], AbstractContextManager[None]]
"""`Progress.step` by itself, for what needs no more of it."""


def untold(title: str) -> AbstractContextManager[None]:
    """A step that nobody hears of."""
    del title
    return nullcontext()


class Silent:
    """Progress for callers that do not want to hear."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[[str], None]]:
        del title
        yield lambda result: None

    def step(self, title: str) -> AbstractContextManager[None]:
        return untold(title)

    @contextmanager
    def count(self, title: str, total: int | None, *, unit: str = "images") -> Iterator[Callable[[int], None]]:
        del title, total, unit
        yield lambda images: None

    def note(self, text: str) -> None:
        del text

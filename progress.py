# SPDX-License-Identifier: Apache-2.0
"""Who is told what an export is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told what is going on; the command line shows it."""

    def stage(self, title: str) -> AbstractContextManager[Callable[[str], None]]:
        """Around one stage; what it yields takes a word on the stage's result."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Silent:
    """Progress for callers that do not want to hear."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[[str], None]]:
        del title
        yield lambda result: None

    def note(self, text: str) -> None:
        del text

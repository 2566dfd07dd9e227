# SPDX-License-Identifier: Apache-2.0
"""Progress on a terminal, and as plain lines in a pipe."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

_LONG_STEP_S = 2.0
"""What is shorter needs no line of its own."""


class ConsoleProgress:
    """A spinner with the elapsed time on a terminal, a plain line for each finished stage otherwise."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._spinner: Progress | None = None

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Callable[[str], None]]:
        results: list[str] = []
        started = time.perf_counter()
        with self._spinning(title):
            yield results.append
        self._line(f"{title:8s}{time.perf_counter() - started:6.1f} s  {'; '.join(results)}".rstrip())

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if (elapsed := time.perf_counter() - started) > _LONG_STEP_S:
            self._line(f"{'':8s}{elapsed:6.1f} s    {title}")

    @contextlib.contextmanager
    def count(self, title: str, total: int | None, *, unit: str = "images") -> Iterator[Callable[[int], None]]:
        started, done = time.perf_counter(), 0

        def told(images: int) -> None:
            nonlocal done
            done += images
            speed = done / max(time.perf_counter() - started, 1e-3)
            bar.update(task, completed=done, speed=f"{speed:.1f} {unit}/s")

        with self._paused(), _bar(self.console) as bar:
            task = bar.add_task(title, total=total, speed="")
            yield told
        if (elapsed := time.perf_counter() - started) > _LONG_STEP_S:
            self._line(f"{'':8s}{elapsed:6.1f} s    {title}, {done} {unit}, {done / elapsed:.1f} {unit}/s")

    def note(self, text: str) -> None:
        self.console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def _spinning(self, title: str) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as self._spinner:
            self._spinner.add_task(title, total=None)
            yield
        self._spinner = None

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Without the spinner: a terminal has room for one moving line."""
        if self._spinner is None:
            yield
            return
        self._spinner.stop()
        try:
            yield
        finally:
            self._spinner.start()


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

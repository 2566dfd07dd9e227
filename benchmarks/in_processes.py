# SPDX-License-Identifier: Apache-2.0
"""Candidates in processes of their own: started together, asked in turn, stopped together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from peers import Array, Candidate, installed, serve

from metaformer_export.runtime.threads import available_threads

Answer = str | tuple[Array, list[float]]
"""Why it failed, or the output and the ms of each timed run."""

RUNS = 2
"""Timed runs of one turn."""
_MAKING_S = 900.0


@dataclass(frozen=True)
class Running:
    """A candidate whose process answers."""

    candidate: Candidate
    pipe: Connection

    def ask(self, x: Array, runs: int) -> Answer:
        """The output for x (B, C, H, W), after an untimed run the times of `runs` more."""
        try:
            self.pipe.send((x, runs))
        except OSError:
            return "the process died"
        return _answer(self.pipe)


def in_a_process(target: Callable[..., None], *arguments: object) -> float | str:
    """What `target(*arguments, pipe)` sends, or why it sent nothing."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_MAKING_S):
            process.kill()
            return f"no result after {_MAKING_S:.0f} s"
        outcome: float | str = ours.recv()
    except EOFError:
        process.join()
        return f"the process died with exit code {process.exitcode}"
    process.join()
    return outcome


@contextmanager
def started(
    model: str,
    size: int | None,
    folder: Path,
    candidates: Sequence[Candidate],
    failures: dict[Candidate, str],
    threads: int | None = None,
) -> Iterator[list[Running]]:
    """The candidates that start, each in its process; the others are added to `failures`."""
    context = get_context("spawn")
    running: list[Running] = []
    processes = []
    try:
        for candidate in candidates:
            if candidate in failures:
                continue
            if not installed(candidate):
                failures[candidate] = f"{candidate.needs} is not installed"
                continue
            ours, theirs = context.Pipe()
            arguments = (candidate, model, size, folder, threads or available_threads(), theirs)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            if why := _answer(ours):
                failures[candidate] = str(why)
            else:
                running.append(Running(candidate, ours))
        yield running
    finally:
        for process in processes:
            process.kill()
            process.join()


def interleaved(running: Sequence[Running], x: Array, rounds: int) -> Mapping[str, list[float]]:
    """Milliseconds of RUNS runs a round, by name of the candidate; SystemExit if one stops answering."""
    times: dict[str, list[float]] = {each.candidate.name: [] for each in running}
    for turn in range(rounds):
        start = turn % len(running)  # so that none always follows the same neighbour
        for each in (*running[start:], *running[:start]):
            answer = each.ask(x, RUNS)
            if isinstance(answer, str):
                raise SystemExit(f"{each.candidate.name} failed while it was timed, at batch {len(x)}: {answer}")
            times[each.candidate.name] += answer[1]
    return times


def _answer(pipe: Connection) -> Answer:
    try:
        answer: Answer = pipe.recv()
    except EOFError:
        return "the process died"
    return answer

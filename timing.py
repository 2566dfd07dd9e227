# SPDX-License-Identifier: Apache-2.0
"""Latencies of eager and of what was exported, side by side, and which to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from . import remarks
from .artifacts import BenchReport, BenchRow, Candidate, Choice, Gain, ParityReport
from .calibration.images import ImageSet
from .errors import EngineError
from .options import ExportOptions
from .progress import Progress, Step
from .runtime import bench, eager
from .runtime.memory import trim
from .runtime.session import Session
from .runtime.tensorrt.session import Session as EngineSession
from .runtime.threads import available_threads

_TOGETHER_SECONDS = 4.0
_LEAST_TOGETHER = 5
_ALONE_SECONDS = 3.0
"""For each batch size, but for the last round; and the rounds that there are in any case."""
_GPU_RUNS = 20


@dataclass(frozen=True)
class Stopwatch:
    """Times sessions beside eager, at the batch sizes of the options."""

    model: nn.Module
    images: ImageSet
    options: ExportOptions
    _waiting: list[tuple[Candidate, Session]] = field(default_factory=list)
    _rows: list[BenchRow] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    _doubts: dict[str, None] = field(default_factory=dict)
    _failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def take(self, candidate: Candidate, session: Session) -> None:
        """Keep a session until it is timed."""
        self._waiting.append((candidate, session))

    def time(self, step: Step) -> None:
        """Time those that wait, each by itself, and let them go."""
        self._drop_what_does_not_run()
        while self._waiting:
            candidate, session = self._waiting.pop(0)
            with step(f"{_name(candidate)}, timed"):
                session(self.images.take(0, 1))  # the first run packs weights, beside those of the file
                self._measure([(candidate, session)], 1, _ALONE_SECONDS, leave=partial(_give_back, [session]))

    def report(self, candidates: tuple[Candidate, ...], proof: ParityReport, progress: Progress) -> BenchReport:
        """Time those that still wait, together; what was measured of all, and which of them to take."""
        with progress.stage("time") as done:
            if self._waiting or not self._rows:
                self._drop_what_does_not_run()
                self._measure(self._waiting, _LEAST_TOGETHER, _TOGETHER_SECONDS)
                self._waiting.clear()
            rows = [row for batch in self._batches() for row in _in_order(self._rows, batch)]
            done(remarks.time_line(rows))
        on_host = (row for row in rows if row.file and row.gpu_ms is None)
        delivered = next((row for row in on_host if row.precision == self.options.precision), None)
        return BenchReport(
            machine=bench.machine(),
            threads=available_threads(),
            iterations=min(self._counts),
            results=tuple(rows),
            speedup_over_eager=None if delivered is None else delivered.speedup_over_eager,
            unstable="; ".join(self._doubts),
            candidates=tuple(map(self._as_it_ran, candidates)),
            choice=choose(candidates, rows, self.options.batch.usual) if proof.passed else None,
            gain=gain_of(rows, self.options.batch.usual) if self.options.precision == "int8" else None,
        )

    def _drop_what_does_not_run(self) -> None:
        """An engine that has no memory for a batch, which its proof did not need, fails and is not timed."""
        for candidate, session in tuple(self._waiting):
            if isinstance(session, EngineSession):
                try:
                    for batch in self._batches():
                        session.gpu_milliseconds(batch, 1)
                except EngineError as error:
                    self._waiting.remove((candidate, session))
                    self._failures[candidate.runtime, candidate.precision] = str(error)

    def _as_it_ran(self, candidate: Candidate) -> Candidate:
        reason = self._failures.get((candidate.runtime, candidate.precision))
        return candidate if reason is None else replace(candidate, passed=False, failures=(*candidate.failures, reason))

    def _batches(self) -> list[int]:
        return sorted({self.options.batch.smallest, self.options.batch.usual})

    def _measure(
        self,
        sessions: Sequence[tuple[Candidate, Session]],
        least: int,
        seconds: float,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        _give_back([session for _, session in sessions])
        with eager.threads(available_threads()):
            for batch in self._batches():
                x = self.images.take(0, batch)
                runs: dict[str, bench.Run] = {eager.NAME: partial(eager.run, self.model, x)}
                runs |= {_name(candidate): partial(session, x) for candidate, session in sessions}
                times = bench.interleaved(runs, least=least, seconds=seconds, leave=leave)
                self._rows.extend(_rows(times, sessions, batch))
                self._counts.append(len(times[eager.NAME]))
                if doubt := bench.unstable(times):
                    self._doubts[f"batch {batch}: {doubt}"] = None


def choose(candidates: Sequence[Candidate], rows: list[BenchRow], batch: int) -> Choice | None:
    """The fastest candidate of the folder at a batch size that passed; None if none did."""
    times = {(row.runtime, row.precision): row for row in rows if row.batch == batch and row.file}
    timed = [
        (times[each.runtime, each.precision], each)
        for each in candidates
        if each.passed and each.file and (each.runtime, each.precision) in times
    ]
    if not timed:
        return None
    # Each was timed beside eager, but not always beside each other.
    row, best = max(timed, key=lambda pair: pair[0].speedup_over_eager)
    ms, speedup, fixed = row.median_ms, row.speedup_over_eager, best.compiled_for
    return Choice(best.runtime, best.precision, best.file, best.settings, batch, ms, speedup, fixed)


def gain_of(rows: Sequence[BenchRow], batch: int) -> Gain | None:
    """The fastest way to run the quantised file against the fastest of its float form; None where either is missing."""
    # Each was timed beside eager, but not always beside each other.
    ways = sorted((row for row in rows if row.batch == batch), key=lambda row: -row.speedup_over_eager)
    own = next((row for row in ways if row.precision == "int8" and row.passed), None)
    float_form = next((row for row in ways if row.precision == "fp32" and row.runtime != eager.NAME), None)
    if own is None or float_form is None:
        return None
    ratio = own.speedup_over_eager / float_form.speedup_over_eager
    return Gain(own.runtime, own.median_ms, float_form.runtime, float_form.median_ms, batch, ratio)


def _give_back(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.release()
    trim()


def _name(candidate: Candidate) -> str:
    return f"{candidate.runtime} {candidate.precision}"


def _rows(times: dict[str, list[float]], sessions: Sequence[tuple[Candidate, Session]], batch: int) -> list[BenchRow]:
    """One row for eager and for each candidate."""
    base = bench.median(times[eager.NAME])
    rows = [BenchRow(eager.NAME, "fp32", batch, base, bench.p90(times[eager.NAME]), 1.0)]
    for each, session in sessions:
        measured = times[_name(each)]
        ms, p90 = bench.median(measured), bench.p90(measured)
        gpu = bench.median(session.gpu_milliseconds(batch, _GPU_RUNS)) if isinstance(session, EngineSession) else None
        rows.append(BenchRow(each.runtime, each.precision, batch, ms, p90, base / ms, each.file, each.passed, gpu))
    return rows


def _in_order(rows: list[BenchRow], batch: int) -> list[BenchRow]:
    """Those of a batch size: eager, as it was beside the first, and then the candidates."""
    first, *others = (row for row in rows if row.batch == batch)
    return [first, *(row for row in others if row.runtime != eager.NAME)]

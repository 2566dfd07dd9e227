# SPDX-License-Identifier: Apache-2.0
"""Latencies of eager and of what was exported, side by side."""

from __future__ import annotations

from functools import partial

from torch import nn

from . import remarks
from .artifacts import BenchReport, BenchRow, Candidate, ParityReport
from .calibration.images import ImageSet
from .candidates import Contender, choose
from .options import ExportOptions
from .progress import Progress
from .runtime import bench, eager
from .runtime.threads import available_threads

_BENCH_SECONDS = 8.0


def time_candidates(
    model: nn.Module,
    contenders: tuple[Contender, ...],
    proof: ParityReport,
    images: ImageSet,
    options: ExportOptions,
    progress: Progress,
) -> BenchReport:
    """Eager and every candidate that can be timed, and which of them to take."""
    with progress.stage("time") as done, eager.threads(available_threads()):
        timed = [(each.candidate, each.session) for each in contenders if each.session is not None]
        rows: list[BenchRow] = []
        rounds: list[int] = []
        doubts: list[str] = []
        for batch in sorted({options.batch.smallest, options.batch.usual}):
            x = images.take(0, batch)
            runs: dict[str, bench.Run] = {eager.NAME: partial(eager.run, model, x)}
            runs |= {_name(candidate): partial(session, x) for candidate, session in timed}
            times = bench.interleaved(runs, seconds=_BENCH_SECONDS)
            rounds.append(len(times[eager.NAME]))
            rows += _rows(times, [candidate for candidate, _ in timed], batch)
            if doubt := bench.unstable(times):
                doubts.append(f"batch {batch}: {doubt}")
        done(remarks.time_line(rows))
    delivered = next((row for row in rows if row.file and row.precision == options.precision), None)
    return BenchReport(
        machine=bench.machine(),
        threads=available_threads(),
        iterations=min(rounds),
        results=tuple(rows),
        speedup_over_eager=None if delivered is None else delivered.speedup_over_eager,
        unstable="; ".join(doubts),
        candidates=tuple(each.candidate for each in contenders),
        choice=choose(contenders, rows, options.batch.usual) if proof.passed else None,
    )


def _name(candidate: Candidate) -> str:
    return f"{candidate.runtime} {candidate.precision}"


def _rows(times: dict[str, list[float]], candidates: list[Candidate], batch: int) -> list[BenchRow]:
    """One row for eager and for each candidate."""
    base = bench.median(times[eager.NAME])
    rows = [BenchRow(eager.NAME, "fp32", batch, base, bench.p90(times[eager.NAME]), 1.0)]
    for each in candidates:
        measured = times[_name(each)]
        ms, p90 = bench.median(measured), bench.p90(measured)
        rows.append(BenchRow(each.runtime, each.precision, batch, ms, p90, base / ms, each.file, each.passed))
    return rows

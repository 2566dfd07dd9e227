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
from .proving import Way
from .runtime import bench, eager
from .runtime.threads import available_threads

_BENCH_SECONDS = 6.0


def time_candidates(
    model: nn.Module,
    contenders: tuple[Contender, ...],
    proof: ParityReport,
    images: ImageSet,
    options: ExportOptions,
    progress: Progress,
) -> BenchReport:
    """Eager and every candidate that can be timed, and which of them to take.

    They are timed together; where each has to be opened for it, one after the other, each beside eager.
    """
    rows: list[BenchRow] = []
    counts: list[int] = []
    doubts: dict[str, None] = {}
    batches = sorted({options.batch.smallest, options.batch.usual})
    with progress.stage("time") as done, eager.threads(available_threads()):
        groups = _groups(contenders)
        for group in groups:
            sessions = {_name(candidate): way.open() for candidate, way in group}
            for batch in batches:
                x = images.take(0, batch)
                runs: dict[str, bench.Run] = {eager.NAME: partial(eager.run, model, x)}
                runs |= {name: partial(session, x) for name, session in sessions.items()}
                times = bench.interleaved(runs, seconds=_BENCH_SECONDS / len(groups))
                rows += _rows(times, [candidate for candidate, _ in group], batch)
                counts.append(len(times[eager.NAME]))
                if doubt := bench.unstable(times):
                    doubts[f"batch {batch}: {doubt}"] = None
            del sessions, runs
        rows = [row for batch in batches for row in _in_order(rows, batch)]
        done(remarks.time_line(rows))
    delivered = next((row for row in rows if row.file and row.precision == options.precision), None)
    return BenchReport(
        machine=bench.machine(),
        threads=available_threads(),
        iterations=min(counts),
        results=tuple(rows),
        speedup_over_eager=None if delivered is None else delivered.speedup_over_eager,
        unstable="; ".join(doubts),
        candidates=tuple(each.candidate for each in contenders),
        choice=choose(contenders, rows, options.batch.usual) if proof.passed else None,
    )


def _groups(contenders: tuple[Contender, ...]) -> list[list[tuple[Candidate, Way]]]:
    """Those that are open already are timed together, and eager alone where there is none at all."""
    timed = [(each.candidate, each.way) for each in contenders if each.way is not None]
    together = [pair for pair in timed if pair[1].session is not None]
    alone = [[pair] for pair in timed if pair[1].session is None]
    return [together, *alone] if together or not alone else alone


def _in_order(rows: list[BenchRow], batch: int) -> list[BenchRow]:
    """Those of a batch size: eager, as it was beside the first, and then the candidates."""
    first, *others = (row for row in rows if row.batch == batch)
    return [first, *(row for row in others if row.runtime != eager.NAME)]


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

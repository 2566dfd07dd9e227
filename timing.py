# SPDX-License-Identifier: Apache-2.0
"""Latencies of eager and of what was exported, side by side."""

from __future__ import annotations

from functools import partial

from torch import nn

from . import remarks
from .artifacts import BenchReport, BenchRow
from .calibration.images import ImageSet
from .options import ExportOptions
from .progress import Progress
from .proving import File, as_written, made_by
from .runtime import bench, eager, onnxruntime
from .runtime.threads import available_threads

_BENCH_SECONDS = 8.0


def time_files(
    model: nn.Module, file: File, images: ImageSet, options: ExportOptions, progress: Progress
) -> BenchReport:
    """Eager, the exported file, and where that is not float32 its float32 form as well."""
    with progress.stage("time") as done, eager.threads(available_threads()):
        sessions = {}
        if options.precision != "fp32":
            sessions["fp32"] = made_by(lambda: file.lowered.model).open()
        if options.precision != "bf16":
            sessions[options.precision] = as_written(file).open()
        rows: list[BenchRow] = []
        rounds: list[int] = []
        doubts: list[str] = []
        for batch in sorted({options.batch.smallest, options.batch.usual}):
            x = images.take(0, batch)
            runs: dict[str, bench.Run] = {eager.NAME: partial(eager.run, model, x)}
            runs |= {name: partial(session, x) for name, session in sessions.items()}
            times = bench.interleaved(runs, seconds=_BENCH_SECONDS)
            rounds.append(len(times[eager.NAME]))
            rows += _rows(times, batch)
            if doubt := bench.unstable(times):
                doubts.append(f"batch {batch}: {doubt}")
        done(remarks.time_line(rows))
    ours = (row for row in rows if row.runtime == onnxruntime.NAME and row.precision == options.precision)
    delivered = next(ours, None)
    return BenchReport(
        machine=bench.machine(),
        threads=available_threads(),
        iterations=min(rounds),
        results=tuple(rows),
        speedup_over_eager=None if delivered is None else delivered.speedup_over_eager,
        unstable="; ".join(doubts),
    )


def _rows(times: dict[str, list[float]], batch: int) -> list[BenchRow]:
    """One row for each candidate; candidates but eager are called by their precision."""
    base = bench.median(times[eager.NAME])
    rows = []
    for name, measured in times.items():
        runtime, precision = (eager.NAME, "fp32") if name == eager.NAME else (onnxruntime.NAME, name)
        ms = bench.median(measured)
        rows.append(BenchRow(runtime, precision, batch, ms, bench.p90(measured), base / ms))
    return rows

# SPDX-License-Identifier: Apache-2.0
"""The portable file against what a user would otherwise run, side by side.

    python benchmarks/portable.py hornet_t hornet_t_gf --batch 1 --batch 8 --out figures.json

Peers: eager, torch.compile in float32 and under bfloat16 autocast, torch's own ONNX export of the same
eager model in ONNX Runtime and in OpenVINO, and that export after onnxslim and onnxsim.
Each runs in a process of its own with the same threads. Parity of every candidate with eager comes
first; then all are timed in turn, round after round, and a ratio is of medians. A peer that fails, or
does not hold parity, is a row that says so; where ours does not, nothing is written and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click
from chosen import MODELS
from in_processes import RUNS, Running, in_a_process, interleaved, started
from peers import CANDIDATES, FILES, LOWERED_PORTABLE, MAX_ERROR_OF_CLUSTERS, Array, Candidate, make_file
from saved import rows_of_others
from summary import markdown

from metaformer_export.artifacts import ModelSpec
from metaformer_export.calibration.images import load_images
from metaformer_export.models import registry
from metaformer_export.models.loading import load_model
from metaformer_export.report import versions
from metaformer_export.runtime import bench, parity
from metaformer_export.runtime.threads import available_threads

_FEWEST = 6
"""Rounds at any batch."""
CLUSTERING = ("boat_swin", "boat_cswin")


@dataclass
class Row:
    """One candidate on one model, size and batch. Errors are over the spread of eager's output."""

    model: str
    resolution: str
    batch: int
    candidate: str
    runtime: str
    precision: str
    ours: bool
    runs: int = 0
    median_ms: float | None = None
    p90_ms: float | None = None
    over_portable: float | None = None
    max_error: float | None = None
    rms_error: float | None = None
    failure: str = ""


@dataclass
class Report:
    """What is written with --out."""

    date: str
    machine: str
    threads: int
    rounds: int
    versions: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def measure(
    model: str, size: int | None, batches: Sequence[int], candidates: Sequence[Candidate], rounds: int, threads: int
) -> list[Row]:
    """All candidates of one model at one size, one row for each batch and candidate."""
    spec = load_model(model, image_size=size).spec
    images = load_images(None, spec)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        failures = _make_files(model, size, folder, candidates)
        if CANDIDATES[0] in failures:
            raise SystemExit(f"{spec.name}: {failures[CANDIDATES[0]]}; nothing was timed")
        if spec.family in CLUSTERING:
            failures[LOWERED_PORTABLE] = "not offered: clustering stays in float32"
        with started(model, size, folder, candidates, failures, threads) as running:
            for batch in batches:
                x = images.take(0, batch)
                rows += _rows(spec, x, running, rounds)
                rows += [_row(spec, batch, each, failure=why) for each, why in failures.items()]
    return rows


def _make_files(model: str, size: int | None, folder: Path, candidates: Sequence[Candidate]) -> dict[Candidate, str]:
    """Make the files that the candidates run; returns the candidates that cannot, and why."""
    wanted = {each.file for each in candidates if each.file}
    if wanted & {"slim.onnx", "sim.onnx"}:
        wanted.add("torch.onnx")
    failed: dict[str, str] = {}
    for file in (name for name in FILES if name in wanted):
        outcome = in_a_process(make_file, file, model, size, folder)
        if isinstance(outcome, str):
            failed[file] = outcome
        click.echo(f"{model}: {file} {outcome if isinstance(outcome, str) else f'in {outcome:.0f} s'}", err=True)
    return {each: failed[each.file] for each in candidates if each.file in failed}


def _rows(spec: ModelSpec, x: Array, running: list[Running], rounds: int) -> list[Row]:
    """Parity first, then the timing of those that hold it."""
    batch = len(x)
    outputs = {each: each.ask(x, 1) for each in running}  # the timed run warms up, and compiles
    reference = next(answer for each, answer in outputs.items() if each.candidate.runtime == "eager")
    if isinstance(reference, str):
        raise SystemExit(f"{spec.name}, batch {batch}: eager fails: {reference}")
    rows, holding = [], []
    for each, answer in outputs.items():
        row = _row(spec, batch, each.candidate)
        row.failure = answer if isinstance(answer, str) else _judged(row, spec, reference[0], answer[0])
        if row.failure and each.candidate.ours and each.candidate.precision == "fp32":
            raise SystemExit(f"{spec.name}, batch {batch}: {each.candidate.name}: {row.failure}; nothing was timed")
        rows.append(row)
        if not row.failure:
            holding.append((each, row))
    rounds = min(rounds, max(_FEWEST, rounds * 2 // (1 + batch)))  # a batch takes long, and averages by itself
    times = interleaved([each for each, _ in holding], x, rounds)
    ours = next((bench.median(times[row.candidate]) for _, row in holding if row.ours), None)
    for _, row in holding:
        row.runs = len(times[row.candidate])
        row.median_ms, row.p90_ms = bench.median(times[row.candidate]), bench.p90(times[row.candidate])
        row.over_portable = None if ours is None else row.median_ms / ours
    return rows


def _row(spec: ModelSpec, batch: int, candidate: Candidate, failure: str = "") -> Row:
    size = "x".join(str(side) for side in spec.image_size)
    return Row(
        registry.find(spec.name)[1].short_name,
        size,
        batch,
        candidate.name,
        candidate.runtime,
        candidate.precision,
        candidate.ours,
        failure=failure,
    )


def _judged(row: Row, spec: ModelSpec, want: Array, got: Array) -> str:
    """Note the errors in the row; why they are too large, or "".

    A clustering model may decide differently on a near tie, in any runtime: there the root mean square keeps out
    what is wrong, and our files were held to the limits with eager's clusters when they were made.
    """
    measured = parity.measure("logits", want, got, classifier=True)
    row.max_error, row.rms_error = measured.max_rel, measured.rms_rel
    if spec.family not in CLUSTERING:
        return "; ".join(parity.judge(measured, parity.THRESHOLDS[row.precision]))
    limit = MAX_ERROR_OF_CLUSTERS[row.precision]
    return "" if measured.rms_rel <= limit else f"logits: rms_rel {measured.rms_rel:.3g} is above {limit:g}"


@click.command()
@click.argument("models", nargs=-1)
@click.option("--batch", "batches", type=int, multiple=True, default=(1,), show_default=True, help="May be repeated.")
@click.option("--resolution", "sizes", type=int, multiple=True, help="May be repeated; the model's own if not given.")
@click.option("--precision", "precisions", type=click.Choice(["fp32", "bf16"]), multiple=True, help="Default: all.")
@click.option("--peer", "only", multiple=True, help="Part of a candidate's name; may be repeated. Default: all.")
@click.option(
    "--rounds", type=int, default=30, show_default=True, help=f"Of {RUNS} timed runs each; fewer at large batches."
)
@click.option("--threads", type=int, default=available_threads(), help="For every candidate.")
@click.option("--add", is_flag=True, help="Keep what --out has of other models, if of today and of this setup.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON; the tables go beside it as Markdown.")
def main(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    sizes: tuple[int, ...],
    precisions: tuple[str, ...],
    only: tuple[str, ...],
    rounds: int,
    threads: int,
    add: bool,
    out: Path | None,
) -> None:
    """Time MODELS (one of each family if none is named) in their portable form against their peers."""
    report = Report(datetime.now(UTC).date().isoformat(), bench.machine(), threads, rounds * RUNS, versions())
    chosen = [each for each in CANDIDATES if _wanted(each, precisions, only)]
    if add and out is not None:
        report.rows += [Row(**row) for row in rows_of_others(out, report, models or MODELS)]
    for model in models or MODELS:
        for size in sizes or (None,):
            report.rows += measure(model, size, batches, chosen, rounds, threads)
            report.rows.sort(key=_place)
            if out is not None:
                out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
                out.with_suffix(".md").write_text(markdown(asdict(report)), encoding="utf-8")
    click.echo(markdown(asdict(report)))


def _place(row: Row) -> int:
    """Models in the order of their list, others after them, whatever was timed first."""
    return MODELS.index(row.model) if row.model in MODELS else len(MODELS)


def _wanted(candidate: Candidate, precisions: tuple[str, ...], only: tuple[str, ...]) -> bool:
    """Eager and the portable file in ONNX Runtime always are: everything is held against them."""
    if candidate.runtime == "eager" or candidate is CANDIDATES[0]:
        return True
    named = not only or any(part in candidate.name for part in only)
    return named and (not precisions or candidate.precision in precisions)


if __name__ == "__main__":
    sys.exit(main())

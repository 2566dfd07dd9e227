# SPDX-License-Identifier: Apache-2.0
"""What each pass gains: the whole recipe against the recipe without it, side by side.

    python benchmarks/passes.py caformer_s18 focalnet_t --out docs/passes.json

Every variant is held against the whole recipe's outputs before it is timed; each runs in a process of
its own with the same threads, all are timed in turn, and a gain is the median of the ratios of times taken
in the same turn: a busy machine changes its speed from turn to turn, by more than a pass gains. The whole
recipe runs in two processes: what one of them gains over both is what chance makes. A pass that gains
nothing anywhere is not kept. Passes that another needs (ExpandMixerOps, GlobalFilterToMatmul) and those
without a cost of their own are not left out.
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
import numpy as np
from chosen import MODELS
from in_processes import Running, interleaved, started
from peers import MAX_ERROR_OF_CLUSTERS, Array, Candidate
from saved import rows_of_others

from metaformer_export.artifacts import Traced
from metaformer_export.calibration.images import load_images
from metaformer_export.export.passes.base import run_pass
from metaformer_export.export.passes.catalog import FORMS
from metaformer_export.export.serialize import ModelFile, serialize
from metaformer_export.export.trace import trace
from metaformer_export.models.loading import load_model
from metaformer_export.report import versions
from metaformer_export.runtime import bench
from metaformer_export.runtime.clustering import decisions
from metaformer_export.runtime.threads import available_threads

MAX_ERROR = 1e-4
"""Largest difference from the whole recipe, over the spread of its output."""
WHOLE, AGAIN = "whole", "nothing"
KEPT = {
    "ExpandMixerOps",
    "GlobalFilterToMatmul",
    "ResizeSpectralFilters",
    "CleanUp",
    "NameAfterModules",
    "MergeTransposes",
}
FORM_OF = {"onnxruntime": "portable", "openvino": "openvino"}
WITH_FACTORS = "convformer_s18"
"""StarReLU before a padded convolution in every block, which the others have seldom."""


@dataclass
class Row:
    """One pass on one model: medians without it and of the whole recipe, and how much longer a turn takes without."""

    model: str
    runtime: str
    left_out: str
    rewrites: int
    without_ms: float
    whole_ms: float
    gain: float


@dataclass
class Report:
    """What is written with --out."""

    date: str
    machine: str
    threads: int
    versions: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def lowered(traced: Traced, form: str, without: str = "") -> tuple[ModelFile, dict[str, int]]:
    """The file, and how many places each pass changed."""
    model = traced.model.clone()
    rewrites: dict[str, int] = {}
    for each in FORMS[form]:
        name = type(each).__name__
        if name != without:
            rewrites[name] = rewrites.get(name, 0) + run_pass(each, model).rewrites
    return serialize(model, f"{without or WHOLE}.onnx"), rewrites


def measure(name: str, runtime: str, rounds: int, threads: int) -> list[Row]:
    """One row for each pass that changes the model."""
    loaded = load_model(name)
    x = load_images(None, loaded.spec).take(0, 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        traced = trace(loaded.module, loaded.spec)
        rewrites = write_variants(traced, FORM_OF[runtime], folder)
        files = {WHOLE: WHOLE, AGAIN: WHOLE} | {each: each for each in rewrites}
        candidates = [Candidate(each, runtime, "fp32", f"{file}.onnx") for each, file in files.items()]
        failures: dict[Candidate, str] = {}
        with started(name, None, folder, candidates, failures, threads) as running:
            if failures:
                raise SystemExit(f"{name}: " + "; ".join(f"{each.name}: {why}" for each, why in failures.items()))
            hold_against_whole(name, running, x, clusters=bool(decisions(traced.model.graph)))
            times = interleaved(running, x, rounds)
    whole = (np.array(times[WHOLE]) + np.array(times[AGAIN])) / 2
    base = bench.median(times[WHOLE] + times[AGAIN])
    return [
        Row(
            name, runtime, each, rewrites.get(each, 0), bench.median(times[each]), base,
            gain=float(np.median(np.array(times[each]) / whole)),
        )
        for each in (AGAIN, *rewrites)
    ]  # fmt: skip


def write_variants(traced: Traced, form: str, folder: Path) -> dict[str, int]:
    """Write the whole recipe and it without each pass in turn; returns the places of the passes left out."""
    whole, rewrites = lowered(traced, form)
    whole.write(folder / f"{WHOLE}.onnx")
    chosen = {each: count for each, count in rewrites.items() if count and each not in KEPT}
    for each in chosen:
        lowered(traced, form, each)[0].write(folder / f"{each}.onnx")
    return chosen


def hold_against_whole(name: str, running: Sequence[Running], x: Array, *, clusters: bool) -> None:
    """SystemExit if a variant does not compute what the whole recipe computes."""
    want: Array | None = None
    for each in running:
        answer = each.ask(x, 1)
        if isinstance(answer, str):
            raise SystemExit(f"{name}, {each.candidate.name}: {answer}")
        want = answer[0] if want is None else want
        difference = np.abs(answer[0] - want) / want.std()
        error = float(np.sqrt(np.mean(difference**2)) if clusters else difference.max())
        if not error <= (MAX_ERROR_OF_CLUSTERS["fp32"] if clusters else MAX_ERROR):
            raise SystemExit(f"{name} without {each.candidate.name}: differs by {error:.1e}; nothing was timed")


def markdown(report: Report) -> str:
    """The rows as a table, the largest gain of a model first."""
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines = [
        f"{report.date}, {report.machine}, {report.threads} threads; {packages}",
        "",
        "| model | runtime | pass | places | without, ms | with, ms | gain |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in sorted(report.rows, key=lambda row: (row.model, row.runtime, -row.gain)):
        figures = f"{row.without_ms:.1f} | {row.whole_ms:.1f} | {row.gain:.2f}x |"
        lines.append(f"| {row.model} | {row.runtime} | {row.left_out} | {row.rewrites} | {figures}")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("models", nargs=-1)
@click.option("--runtime", "runtimes", type=click.Choice(sorted(FORM_OF)), multiple=True, help="Default: all.")
@click.option("--rounds", type=int, default=20, show_default=True, help="Timed rounds.")
@click.option("--threads", type=int, default=available_threads(), help="For every variant.")
@click.option("--add", is_flag=True, help="Keep what --out has of other models, if of today and of this setup.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON; the table goes beside it as Markdown.")
def main(
    models: tuple[str, ...], runtimes: tuple[str, ...], rounds: int, threads: int, add: bool, out: Path | None
) -> None:
    """Time MODELS (one of each family if none is named) with each pass of their form left out."""
    report = Report(datetime.now(UTC).date().isoformat(), bench.machine(), threads, versions())
    chosen = models or (*MODELS, WITH_FACTORS)
    if add and out is not None:
        report.rows += [Row(**row) for row in rows_of_others(out, report, chosen)]
    for name in chosen:
        for runtime in runtimes or FORM_OF:
            report.rows += measure(name, runtime, rounds, threads)
            if out is not None:
                out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
                out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    click.echo(markdown(report))


if __name__ == "__main__":
    sys.exit(main())

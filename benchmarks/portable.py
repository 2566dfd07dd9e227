# SPDX-License-Identifier: Apache-2.0
"""The portable file in ONNX Runtime against what a user would otherwise run, side by side.

    python benchmarks/portable.py hornet_t hornet_t_gf

Peers: torch's own ONNX export of the same eager model in ONNX Runtime, eager, and torch.compile;
with the `openvino` extra installed also the portable file in OpenVINO.
Parity of every candidate with eager is asserted before anything is timed; all are timed in turn in
one process with the same threads, and a ratio is of medians. A peer that fails is a row that says so.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch

from metaformer_export.calibration.images import load_images
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import ModelFile, serialize
from metaformer_export.export.trace import DEFAULT_OPSET, trace
from metaformer_export.models.loading import LoadedModel, load_model
from metaformer_export.models.mixers import global_filter as mixers
from metaformer_export.report import versions
from metaformer_export.runtime import bench, eager, onnxruntime, openvino
from metaformer_export.runtime.threads import available_threads

MAX_ERROR = 1e-4
"""Largest difference from eager, over the spread of eager's output, that a candidate may have."""

OURS = "portable in ONNX Runtime"


@dataclass
class Row:
    """One candidate on one model and batch."""

    model: str
    batch: int
    candidate: str
    median_ms: float | None = None
    p90_ms: float | None = None
    ours_is_faster_by: float | None = None
    max_error: float | None = None
    failure: str = ""


@dataclass
class Report:
    """What is written with --out."""

    date: str
    machine: str
    threads: int
    versions: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def portable(loaded: LoadedModel, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Our portable form."""
    lowered = lower(trace(loaded.module, loaded.spec), "portable")
    session = onnxruntime.open_session(serialize(lowered.model), threads=threads)
    return lambda batch: session(batch)[0]


def torch_export(loaded: LoadedModel, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """What torch.onnx.export makes of the model when nothing tells it about mixer ops."""
    example = torch.zeros(2, loaded.spec.in_chans, *loaded.spec.image_size)
    with mock.patch.object(mixers, "global_filter", mixers.fft_filter), torch.no_grad():
        program = torch.onnx.export(
            loaded.module,
            (example,),
            dynamo=True,
            opset_version=DEFAULT_OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    session = onnxruntime.open_session(ModelFile(program.model_proto.SerializeToString()), threads=threads)
    return lambda batch: session(batch)[0]


def eagerly(loaded: LoadedModel, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The model as it is."""
    torch.set_num_threads(threads)
    return lambda batch: eager.run(loaded.module, batch)[0]


def compiled(loaded: LoadedModel, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """torch.compile with its default settings."""
    torch.set_num_threads(threads)
    module = torch.compile(loaded.module)
    return lambda batch: eager.run(module, batch)[0]


def in_openvino(loaded: LoadedModel, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Our portable form in OpenVINO, in float32 and for latency."""
    lowered = lower(trace(loaded.module, loaded.spec), "portable")
    session = openvino.open_session(serialize(lowered.model), threads=threads)
    return lambda batch: session(batch)[0]


MAKERS = {
    OURS: portable,
    "torch export in ONNX Runtime": torch_export,
    "eager": eagerly,
    "torch.compile": compiled,
}
if importlib.util.find_spec("openvino") is not None:
    MAKERS["portable in OpenVINO"] = in_openvino


def measure(name: str, batches: list[int], rounds: int, threads: int) -> list[Row]:
    """All candidates of one model, one row for each batch and candidate."""
    loaded = load_model(name)
    images = load_images(None, loaded.spec)
    candidates, failures = {}, {}
    for label, make in MAKERS.items():
        started = time.perf_counter()
        try:
            candidates[label] = make(loaded, threads)
            candidates[label](images.take(0, batches[0]))
        except Exception as error:  # whatever a peer dies of is its row
            candidates.pop(label, None)
            failures[label] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        click.echo(f"{name}: {label} made in {time.perf_counter() - started:.0f} s {failures.get(label, '')}", err=True)
    rows = []
    for batch in batches:
        x = images.take(0, batch)
        reference = eager.run(loaded.module, x)[0]
        errors = {k: float(np.abs(run(x) - reference).max() / reference.std()) for k, run in candidates.items()}
        wrong = {label: error for label, error in errors.items() if not error <= MAX_ERROR}
        if wrong:
            raise SystemExit(f"{name}, batch {batch}: parity does not hold, nothing was timed: {wrong}")
        runs = {label: (lambda run=run, x=x: run(x)) for label, run in candidates.items()}
        times = bench.interleaved(runs, rounds=rounds, seconds=600)
        ours = bench.median(times[OURS])
        rows += [
            Row(name, batch, label, bench.median(ms), bench.p90(ms), bench.median(ms) / ours, errors[label])
            for label, ms in times.items()
        ]
        rows += [Row(name, batch, label, failure=why) for label, why in failures.items()]
    return rows


def markdown(report: Report) -> str:
    """The rows as a table."""
    lines = [
        f"{report.date}, {report.machine}, {report.threads} threads, "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "",
        "| model | batch | candidate | median ms | p90 ms | portable is faster by | max error / std |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        cells = (
            ["failed", "", "", row.failure]
            if row.failure
            else [f"{row.median_ms:.1f}", f"{row.p90_ms:.1f}", f"{row.ours_is_faster_by:.2f}x", f"{row.max_error:.1e}"]
        )
        lines.append("| " + " | ".join([row.model, str(row.batch), row.candidate, *cells]) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--batch", "batches", type=int, multiple=True, default=(1,), show_default=True, help="May be repeated.")
@click.option("--rounds", type=int, default=30, show_default=True, help="Timed rounds.")
@click.option("--threads", type=int, default=available_threads(), help="For every candidate.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the report as JSON.")
def main(models: tuple[str, ...], batches: tuple[int, ...], rounds: int, threads: int, out: Path | None) -> None:
    """Time MODELS in their portable form against eager, torch.compile and torch's own ONNX export."""
    torch.set_num_threads(threads)
    report = Report(datetime.now(UTC).date().isoformat(), bench.machine(), threads, versions())
    for name in models:
        report.rows += measure(name, list(batches), rounds, threads)
    click.echo(markdown(report))
    if out is not None:
        out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

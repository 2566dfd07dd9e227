# SPDX-License-Identifier: Apache-2.0
"""OpenVINO compiled for one batch size (`--batch 1`) against the same file compiled for any, side by side.

    python benchmarks/fixed_batch.py --out docs/performance/fixed_batch.json

The files of `--target openvino`, in float32 and in INT8 (ranges from crops of the photographs of the package), each
opened both ways. Outputs are held against those of float32 for any batch first; then all are timed in turn at that
batch, round after round, and a gain is a ratio of medians.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from peers import MAX_ERROR_OF_CLUSTERS
from quantised import MODELS, own_files, write_crops
from saved import rows_of_others

from metaformer_export.calibration.dataset import open_dataset
from metaformer_export.calibration.images import load_images
from metaformer_export.export.lower import lower_all
from metaformer_export.export.trace import trace
from metaformer_export.models.loading import load_model
from metaformer_export.quantizing import FLOAT_FORM, INT8_FORM
from metaformer_export.report import versions
from metaformer_export.runtime import bench, openvino
from metaformer_export.runtime.clustering import decisions
from metaformer_export.runtime.session import Session
from metaformer_export.runtime.threads import available_threads

FORMS = ("float32", "INT8")
MAX_ERROR = 1e-4
"""Root mean square of float32 compiled both ways, over the spread; clusterings may swap near ties."""
MOST_OF_INT8 = 1.3
"""Times the error of INT8 for any batch: bytes on the edge are rounded to either side."""


@dataclass
class Row:
    """One file at one batch size: medians compiled for any batch and for this one, their ratio, and the root mean
    square of the difference of this one's outputs from those of float32 for any, over their spread.
    """

    model: str
    form: str
    batch: int
    any_ms: float
    fixed_ms: float
    gain: float
    rms: float


@dataclass
class Report:
    """What is written with --out."""

    date: str
    machine: str
    threads: int
    versions: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def measure(model: str, batch: int, seconds: float) -> list[Row]:
    """The rows of one model."""
    loaded, threads = load_model(model), available_threads()
    forms = (FLOAT_FORM["openvino"], INT8_FORM["openvino"])
    traced = trace(loaded.module, loaded.spec)
    lowered = dict(zip(forms, lower_all(traced, forms), strict=True))
    x = load_images(None, loaded.spec).take(0, batch)
    sessions: dict[tuple[str, bool], Session] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_crops(folder)
        shown = open_dataset(folder, loaded.spec)
        for form, make in zip(FORMS, own_files("openvino", lowered, shown, folder), strict=True):
            file = make()
            for fixed in (False, True):
                sessions[form, fixed] = openvino.open_session(file, threads=threads, batch=batch if fixed else None)
    outputs = {each: session(x)[0] for each, session in sessions.items()}
    want = outputs["float32", False]
    errors = {each: float(np.sqrt(((got - want) ** 2).mean()) / want.std()) for each, got in outputs.items()}
    limits = {
        "float32": MAX_ERROR_OF_CLUSTERS["fp32"] if decisions(traced.model.graph) else MAX_ERROR,
        "INT8": MOST_OF_INT8 * errors["INT8", False],
    }
    for form in FORMS:
        if not errors[form, True] <= limits[form]:
            raise SystemExit(f"{model} in {form}: an error of {errors[form, True]:.2g} is above {limits[form]:.2g}")
    runs = {f"{form} {fixed}": partial(session, x) for (form, fixed), session in sessions.items()}
    times = bench.interleaved(runs, rounds=60, least=10, seconds=seconds)
    rows = []
    for form in FORMS:
        any_ms, fixed_ms = (bench.median(times[f"{form} {fixed}"]) for fixed in (False, True))
        rows.append(Row(model, form, batch, any_ms, fixed_ms, any_ms / fixed_ms, errors[form, True]))
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """Milliseconds and gains by model."""
    lines = [f"{report['date']}, {report['machine']}, {report['threads']} threads", ""]
    lines += ["| model | file | batch | for any batch, ms | for this one, ms | gain | rms error |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for row in report["rows"]:
        lines.append(
            f"| {row['model']} | {row['form']} | {row['batch']} | {row['any_ms']:.1f} | {row['fixed_ms']:.1f} "
            f"| {row['gain']:.2f}x | {row['rms']:.1e} |"
        )
    for form in FORMS:
        gains = [row["gain"] for row in report["rows"] if row["form"] == form]
        mean = math.exp(sum(map(math.log, gains)) / len(gains))
        lines.append(f"| geometric mean | {form} | | | | **{mean:.2f}x** | |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("models", nargs=-1)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seconds", type=float, default=45.0, show_default=True, help="Of timing, for each model.")
@click.option("--add", is_flag=True, help="Keep what --out has of other models, if of today and of this setup.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON.")
def main(models: tuple[str, ...], batch: int, seconds: float, add: bool, out: Path | None) -> None:
    """Time MODELS (seven, one of each family, if none is named) compiled for one batch size and for any."""
    report = Report(datetime.now(UTC).date().isoformat(), bench.machine(), available_threads(), versions())
    if add and out is not None:
        report.rows += [Row(**row) for row in rows_of_others(out, report, models or MODELS)]
    for model in models or MODELS:
        report.rows += measure(model, batch, seconds)
        if out is not None:
            out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        click.echo(markdown(asdict(report)), err=True)


if __name__ == "__main__":
    main()

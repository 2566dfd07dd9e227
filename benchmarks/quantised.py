# SPDX-License-Identifier: Apache-2.0
"""INT8 against the float form that it replaces, in ONNX Runtime and in OpenVINO, at batch 1.

    python benchmarks/quantised.py --out docs/performance/quantised.json

Seeded random weights whose every branch is alive, ranges from 32 crops of the photographs that come with the package,
by the default method. For each runtime: the float32 file that the tool makes for it, the INT8 file that it makes, and
what quantize_static makes of torch's own export with the same images (U8S8, all Conv, MatMul and Gemm).
Errors, root mean squares over the spread of the float32 outputs, are of six whole photographs; then all are timed in
turn, round after round, and a ratio is of medians.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from accuracy import naively_quantised
from numpy.typing import NDArray
from PIL import Image
from saved import rows_of_others

from metaformer_export.artifacts import Lowered, Target
from metaformer_export.calibrating import calibrated
from metaformer_export.calibration import images as photographs
from metaformer_export.calibration.dataset import Dataset, open_dataset
from metaformer_export.calibration.images import load_images
from metaformer_export.calibration.quantize import quantize
from metaformer_export.errors import MetaformerExportError
from metaformer_export.export.lower import lower_all
from metaformer_export.export.serialize import ModelFile, serialize
from metaformer_export.export.trace import trace
from metaformer_export.models.loading import LoadedModel, load_model
from metaformer_export.options import CalibrationOptions, ExportOptions
from metaformer_export.progress import Silent
from metaformer_export.quantizing import FLOAT_FORM, INT8_FORM, ON_CPU
from metaformer_export.report import versions
from metaformer_export.runtime import bench, onnxruntime, openvino
from metaformer_export.runtime.saturation import weight_bits
from metaformer_export.runtime.session import OpenSession, Session
from metaformer_export.runtime.threads import available_threads

MODELS = (
    "focalnet_t",
    "hornet_t",
    "hornet_t_gf",
    "acmix_swin_t",
    "boat_swin_t",
    "caformer_s18",
    "poolformer_s12",
)
RUNTIMES: Mapping[str, tuple[OpenSession, Target]] = {
    "ONNX Runtime": (onnxruntime.open_session, "onnx"),
    "OpenVINO": (openvino.open_session, "openvino"),
}
_CROPS = 32
_SIDE = 256


@dataclass
class Row:
    """One way to run one model."""

    model: str
    runtime: str
    form: str
    median_ms: float | None = None
    rms: float | None = None
    over_float: float | None = None
    failure: str = ""


@dataclass
class Report:
    """What is written with --out."""

    date: str
    machine: str
    threads: int
    weight_bits: int
    versions: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def measure(model: str, seconds: float) -> list[Row]:
    """All ways of one model: errors first, then times side by side."""
    loaded = load_model(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "crops").mkdir()
        write_crops(folder / "crops")
        shown = open_dataset(folder / "crops", loaded.spec)
        images = load_images(None, loaded.spec).batch
        rows: dict[str, Row] = {}
        sessions: dict[str, Session] = {}
        wanted: dict[str, NDArray[np.float32]] = {}
        for (runtime, form), make in _files(loaded, shown, folder).items():
            row = rows[f"{runtime} {form}"] = Row(model, runtime, form)
            try:
                session = RUNTIMES[runtime][0](make(), threads=available_threads())
                outputs = np.concatenate([session(image[None])[0] for image in images])
            except (MetaformerExportError, RuntimeError) as error:
                row.failure = str(error).splitlines()[0][:200]
                continue
            want = wanted.setdefault(runtime, outputs)
            row.rms = float(np.sqrt(((outputs - want) ** 2).mean()) / want.std())
            sessions[f"{runtime} {form}"] = session
        runs = {name: partial(session, images[:1]) for name, session in sessions.items()}
        times = bench.interleaved(runs, rounds=60, least=10, seconds=seconds)
    for name, each in times.items():
        rows[name].median_ms = bench.median(each)
    for row in rows.values():
        base = rows[f"{row.runtime} float32"].median_ms
        row.over_float = base / row.median_ms if base and row.median_ms else None
    return list(rows.values())


def _files(loaded: LoadedModel, shown: Dataset, folder: Path) -> dict[tuple[str, str], Callable[[], ModelFile | Path]]:
    """By runtime and form, the float32 one first."""
    targets = [target for _, target in RUNTIMES.values()]
    forms = list(dict.fromkeys(form for target in targets for form in (FLOAT_FORM[target], INT8_FORM[target])))
    lowered = dict(zip(forms, lower_all(trace(loaded.module, loaded.spec), forms), strict=True))
    naive = naively_quantised(loaded.module, shown, folder)
    files: dict[tuple[str, str], Callable[[], ModelFile | Path]] = {}
    for runtime, (_, target) in RUNTIMES.items():
        files[runtime, "float32"], files[runtime, "INT8"] = own_files(target, lowered, shown, folder)
        files[runtime, "naive INT8"] = lambda: naive
    return files


def own_files(
    target: Target, lowered: Mapping[str, Lowered], shown: Dataset, folder: Path
) -> tuple[Callable[[], ModelFile], Callable[[], ModelFile]]:
    """What the tool makes for a target in float32 and in INT8, of the forms that it lowers to."""

    def quantised() -> ModelFile:
        graph = lowered[INT8_FORM[target]]
        options = ExportOptions(graph.spec.name, precision="int8", target=target, calibration=CalibrationOptions())
        graph, found = calibrated(graph, shown, options, folder / "none", Silent())
        return serialize(quantize(graph, found.ranges, ON_CPU[target], weight_bits=weight_bits()).model)

    return lambda: serialize(lowered[FLOAT_FORM[target]].model), quantised


def write_crops(folder: Path, count: int = _CROPS) -> None:
    """Parts of the photographs of the package, drawn by a seed, as JPEG files."""
    sources = sorted((Path(photographs.__file__).parent / "photographs").glob("*.jpg"))
    random = np.random.default_rng(0)
    for number in range(count):
        with Image.open(sources[number % len(sources)]) as image:
            side = int(min(image.size) * random.uniform(0.4, 1))
            left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
            part = image.convert("RGB").crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE))
        part.save(folder / f"{number:04}.jpg", quality=92)


def markdown(report: Mapping[str, Any]) -> str:
    """Milliseconds and gains by model, and their geometric means."""
    cells = {(row["model"], row["runtime"], row["form"]): row for row in report["rows"]}
    models = list(dict.fromkeys(row["model"] for row in report["rows"]))
    lines = [f"{report['date']}, {report['machine']}, {report['weight_bits']} bits of weights", ""]
    lines += ["| model | runtime | float32 ms | INT8 ms | gain | rms error | naive INT8 ms | its rms error |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|--:|"]
    for runtime in RUNTIMES:
        gains = []
        for model in models:
            plain, own, naive = (cells[model, runtime, form] for form in ("float32", "INT8", "naive INT8"))
            gains += [own["over_float"]] if own["over_float"] else []
            lines.append(
                f"| {model} | {runtime} | {_ms(plain)} | {_ms(own)} | {_gain(own)} | {_error(own)} "
                f"| {_ms(naive)} | {_error(naive)} |"
            )
        mean = math.exp(sum(map(math.log, gains)) / len(gains)) if gains else float("nan")
        lines.append(f"| geometric mean | {runtime} | | | **{mean:.2f}x** | | | |")
    return "\n".join(lines) + "\n"


def _ms(row: Mapping[str, Any]) -> str:
    return "does not run" if row["median_ms"] is None else f"{row['median_ms']:.1f}"


def _gain(row: Mapping[str, Any]) -> str:
    return "" if row["over_float"] is None else f"{row['over_float']:.2f}x"


def _error(row: Mapping[str, Any]) -> str:
    return "" if row["rms"] is None else f"{100 * row['rms']:.2g} %"


@click.command()
@click.argument("models", nargs=-1)
@click.option("--seconds", type=float, default=45.0, show_default=True, help="Of timing, for each model.")
@click.option("--add", is_flag=True, help="Keep what --out has of other models, if of today and of this setup.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON.")
def main(models: tuple[str, ...], seconds: float, add: bool, out: Path | None) -> None:
    """Time MODELS (seven, one of each family, if none is named) in float32 and in INT8."""
    report = Report(
        datetime.now(UTC).date().isoformat(), bench.machine(), available_threads(), weight_bits(), versions()
    )
    if add and out is not None:
        report.rows += [Row(**row) for row in rows_of_others(out, report, models or MODELS)]
    for model in models or MODELS:
        report.rows += measure(model, seconds)
        rows = [asdict(row) for row in report.rows if row.model == model]
        click.echo(markdown({**asdict(report), "rows": rows}), err=True)
        report.rows.sort(key=lambda row: MODELS.index(row.model) if row.model in MODELS else len(MODELS))
        if out is not None:
            out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    click.echo(markdown(asdict(report)))


if __name__ == "__main__":
    main()

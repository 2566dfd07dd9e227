# SPDX-License-Identifier: Apache-2.0
"""The stages of an export in order, and the folder they end in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
from torch import nn

from . import remarks
from .artifacts import (
    BenchReport,
    BenchRow,
    Converted,
    ExportResult,
    Lowered,
    Manifest,
    ParityReport,
)
from .calibration.images import ImageSet, load_images
from .export.lower import check, lower_all
from .export.ops.mixer_op import DOMAIN
from .export.precision import convert, out_of_range
from .export.serialize import ModelFile, apart, skeleton
from .export.trace import DEFAULT_OPSET, trace
from .models.checkpoints import Checkpoint
from .models.loading import LoadedModel, load_model
from .options import ExportOptions
from .output import MANIFEST, check_output, staged
from .progress import Progress, Silent
from .report import manifest_of, to_html, to_json
from .request import default_folder, model_name, recognised, resolved
from .runtime import bench, clustering_parity, eager, onnxruntime, parity
from .runtime.clustering import Clusterings, EagerDecisions, decisions
from .runtime.observe import largest_magnitudes, rounded
from .runtime.threads import available_threads

_FILES = {"portable": "model.onnx", "plugin": "model.plugin.onnx"}
_BENCH_SECONDS = 8.0


@dataclass(frozen=True)
class _File:
    """One graph of the output folder. What is proved and timed is `data`, and `data` is what is written; only
    bfloat16 is proved by its rounded graph, because ONNX Runtime's CPU cannot run it.
    """

    name: str
    lowered: Lowered
    converted: Converted
    data: ModelFile


def run_export(options: ExportOptions, progress: Progress | None = None) -> ExportResult:
    """Export one model to a folder: trace, lower, convert, check, prove, time, write.

    Returns the result also when parity fails (`result.parity.passed`): the files are kept, marked failed.

    Raises:
        InputError: something about the request cannot be; nothing was written.
    """
    progress = progress or Silent()
    options, read, notes = recognised(options, progress)
    options = resolved(options)
    folder = default_folder(options) if options.output is None else Path(options.output)
    replaced = check_output(folder)
    loaded, images = _load(options, read or options.checkpoint, progress)
    del read  # as large as the model
    notes += loaded.notes
    for text in notes:
        progress.note(text)
    lowered = _lower(loaded, options, progress)
    files, proof = _prove(loaded, lowered, images, options, progress)
    timing = _time(loaded.module, files[0], images, options, progress)
    closing = remarks.closing_notes(proof, timing, options)
    for text in (*closing, *remarks.replacement_notes(replaced, loaded.spec, options)):
        notes.append(text)
        progress.note(text)
    result = ExportResult(folder, loaded.spec, options.precision, proof, timing, Manifest({}), tuple(notes))
    return _write(result, files, images, options, progress)


def _load(
    options: ExportOptions, checkpoint: str | Path | Checkpoint | None, progress: Progress
) -> tuple[LoadedModel, ImageSet]:
    with progress.stage("load") as done:
        loaded = load_model(
            model_name(options),
            checkpoint=checkpoint,
            num_classes=options.num_classes,
            image_size=options.resolution,
            features=options.features,
            neck=options.neck,
            seed=options.seed,
        )
        images = load_images(options.images, loaded.spec)
        height, width = loaded.spec.image_size
        millions = loaded.spec.parameters / 1e6
        done(f"{loaded.spec.name}, {millions:.1f} M parameters, {height}x{width}, {images.source}")
    return loaded, images


def _lower(loaded: LoadedModel, options: ExportOptions, progress: Progress) -> tuple[Lowered, ...]:
    """The portable form, and the plugin form where the model has mixer ops."""
    with progress.stage("trace") as done:
        traced = trace(loaded.module, loaded.spec, options.opset or DEFAULT_OPSET)
        done(f"{traced.model.graph.num_nodes()} nodes, opset {traced.opset}")
    with progress.stage("lower") as done:
        forms = ["portable"]
        if any(node.domain == DOMAIN for node in traced.model.graph):
            forms.append("plugin")
        lowered = lower_all(traced, forms)
        done(", ".join(f"{each.model.graph.num_nodes()} nodes {each.form}" for each in lowered))
    return lowered


def _prove(
    loaded: LoadedModel, lowered: tuple[Lowered, ...], images: ImageSet, options: ExportOptions, progress: Progress
) -> tuple[tuple[_File, ...], ParityReport]:
    """Every form in the wanted precision, and how all of them compare with eager."""
    with progress.stage("convert") as done:
        peaks: tuple[dict[str, float], ...] = ({},) * len(lowered)
        if options.precision == "fp16":
            peaks = tuple(largest_magnitudes(each, images.batch, available_threads()) for each in lowered)
        files = tuple(_convert(each, options, peak) for each, peak in zip(lowered, peaks, strict=True))
        kept = sum(len(each.ops) for each in files[0].converted.kept)
        done(f"{options.precision}, {kept} nodes kept in float32, ONNX checked")
    with progress.stage("parity") as done:
        ways, classifier = _ways(files, options), not loaded.spec.features
        decide = EagerDecisions(loaded.module)
        proof = parity.compare(
            decide.outputs,
            {name: way.open for name, way in ways.items()},
            images,
            options.precision,
            loaded.spec.outputs,
            classifier=classifier,
            out_of_range=out_of_range(lowered[0], peaks[0]),
            step=progress.step,
        )
        if decisions(lowered[0].model.graph):
            clusterings = {name: Clusterings(way.graph, available_threads()) for name, way in ways.items()}
            proof = clustering_parity.weigh(
                proof, decide, clusterings, images, classifier=classifier, step=progress.step
            )
        done(remarks.parity_line(proof, classifier))
    return files, proof


def _convert(lowered: Lowered, options: ExportOptions, peaks: dict[str, float]) -> _File:
    converted = convert(lowered, options.precision, max_abs=peaks, io=options.io)
    check(skeleton(converted.model))
    name = _FILES[lowered.form]
    return _File(name, lowered, converted, apart(converted.model, name))


@dataclass(frozen=True)
class _Way:
    """One way to run a file: what opens it, and the graph that runs."""

    open: parity.Opener
    graph: Callable[[], ir.Model]


def _ways(files: tuple[_File, ...], options: ExportOptions) -> dict[str, _Way]:
    """Ways to run the files on this machine, all of which must agree with eager."""
    ways = {}
    for file in files:
        if options.precision != "bf16":  # ONNX Runtime's CPU cannot run it
            model = partial(_graph_of, file.converted)
            ways[f"{file.name} in {onnxruntime.NAME}"] = _Way(partial(_open, file.data), model)
        if options.precision != "fp32":
            model = partial(rounded, file.converted)
            ways[f"{file.name}, every tensor rounded to {options.precision}"] = _Way(partial(_open_model, model), model)
    return ways


def _graph_of(converted: Converted) -> ir.Model:
    return converted.model


def _open(data: ModelFile) -> onnxruntime.Session:
    return onnxruntime.open_session(data, threads=available_threads())


def _open_model(model: Callable[[], ir.Model]) -> onnxruntime.Session:
    return _open(apart(model()))


def _time(model: nn.Module, file: _File, images: ImageSet, options: ExportOptions, progress: Progress) -> BenchReport:
    """Eager, the exported file, and where that is not float32 its float32 form as well."""
    with progress.stage("time") as done, eager.threads(available_threads()):
        sessions = {}
        if options.precision != "fp32":
            sessions["fp32"] = _open(apart(file.lowered.model))
        if options.precision != "bf16":
            sessions[options.precision] = _open(file.data)
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


def _write(
    result: ExportResult, files: tuple[_File, ...], images: ImageSet, options: ExportOptions, progress: Progress
) -> ExportResult:
    with progress.stage("write") as done, staged(result.folder) as staging:
        for file in files:
            file.data.write(staging / file.name)
        (staging / "parity.json").write_text(to_json(result.parity), encoding="utf-8")
        (staging / "bench.json").write_text(to_json(result.bench), encoding="utf-8")
        (staging / "report.html").write_text(to_html(result), encoding="utf-8")
        graphs = {file.name: (file.converted, file.lowered) for file in files}
        manifest = manifest_of(result, graphs, images, options, staging)
        (staging / MANIFEST).write_text(to_json(manifest.content), encoding="utf-8")
        done(str(result.folder))
    return replace(result, manifest=manifest)

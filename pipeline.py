# SPDX-License-Identifier: Apache-2.0
"""The stages of an export in order, and the folder they end in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from .artifacts import (
    BenchReport,
    BenchRow,
    Converted,
    ExportResult,
    Lowered,
    Manifest,
    ModelSpec,
    ParityReport,
)
from .calibration.images import ImageSet, load_images
from .errors import CheckpointError, InputError
from .export.lower import check, lower, to_proto
from .export.ops.mixer_op import DOMAIN
from .export.precision import convert, out_of_range
from .export.trace import BFLOAT16_OPSET, DEFAULT_OPSET, OPSETS, trace
from .models import registry
from .models.checkpoints import Checkpoint, read_checkpoint
from .models.identify import identify
from .models.loading import LoadedModel, load_model
from .options import ExportOptions
from .output import MANIFEST, check_output, staged
from .report import manifest_of, to_html, to_json
from .runtime import bench, eager, onnxruntime, parity
from .runtime.observe import largest_magnitudes, rounded
from .runtime.threads import available_threads

_FILES = {"portable": "model.onnx", "plugin": "model.plugin.onnx"}
_BENCH_SECONDS = 8.0


class Progress(Protocol):
    """Told what is going on; the command line shows it."""

    def stage(self, title: str) -> AbstractContextManager[Callable[[str], None]]:
        """Around one stage; what it yields takes a word on the stage's result."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Silent:
    """Progress for callers that do not want to hear."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[[str], None]]:
        del title
        yield lambda result: None

    def note(self, text: str) -> None:
        del text


@dataclass(frozen=True)
class _File:
    """One graph of the output folder. What is proved and timed is `data`, and `data` is what is written; only
    bfloat16 is proved by its rounded graph, because ONNX Runtime's CPU cannot run it.
    """

    name: str
    lowered: Lowered
    converted: Converted
    data: bytes


def run_export(options: ExportOptions, progress: Progress | None = None) -> ExportResult:
    """Export one model to a folder: trace, lower, convert, check, prove, time, write.

    Returns the result also when parity fails (`result.parity.passed`): the files are kept, marked failed.

    Raises:
        InputError: something about the request cannot be; nothing was written.
    """
    progress = progress or Silent()
    options, read, notes = _recognised(options, progress)
    options = _resolved(options)
    folder = _default_folder(options) if options.output is None else Path(options.output)
    replaced = check_output(folder)
    loaded, images = _load(options, read or options.checkpoint, progress)
    del read  # as large as the model
    notes += loaded.notes
    for text in notes:
        progress.note(text)
    lowered = _lower(loaded, options, progress)
    files, proof = _prove(loaded, lowered, images, options, progress)
    timing = _time(loaded.module, files[0], images, options, progress)
    for text in (*_closing_notes(proof, timing, options), *_replacement_notes(replaced, loaded.spec, options)):
        notes.append(text)
        progress.note(text)
    result = ExportResult(folder, loaded.spec, options.precision, proof, timing, Manifest({}), tuple(notes))
    return _write(result, files, images, options, progress)


def _recognised(options: ExportOptions, progress: Progress) -> tuple[ExportOptions, Checkpoint | None, list[str]]:
    """The options with a model; where the checkpoint had to be read to find out which, also that and a note."""
    if options.model is not None or options.checkpoint is None:
        return options, None, []
    with progress.stage("inspect") as done:
        read = read_checkpoint(options.checkpoint)
        found = identify(read)
        done(f"{read.path.name} is a {found.kind} of {found.variant.name}")
    if found.kind != "classifier" and not options.features:
        raise CheckpointError(
            f"checkpoint {read.path} is the {found.kind} of a {found.variant.short_name}, without a classifier; "
            "add --features to export its stage maps."
        )
    return replace(options, model=found.variant.name), read, [found.note] if found.note else []


def _model(options: ExportOptions) -> str:
    if options.model is None:
        raise InputError("an export needs a model, or a checkpoint to take it from.")
    return options.model


def _resolved(options: ExportOptions) -> ExportOptions:
    """Defaults that depend on other options, and combinations that cannot be."""
    registry.find(_model(options))
    opset = options.opset
    if opset is not None and opset not in OPSETS:
        raise InputError(f"--opset {opset} is not supported; use {OPSETS.start} to {OPSETS[-1]}.")
    if options.precision == "bf16":
        if opset is not None and opset < BFLOAT16_OPSET:
            raise InputError(
                f"--bf16 needs opset {BFLOAT16_OPSET} or later (Conv has no bfloat16 before); got {opset}."
            )
        opset = opset or BFLOAT16_OPSET
    if options.io == "fp16" and options.precision != "fp16":
        raise InputError("--io fp16 goes with --fp16.")
    return replace(options, opset=opset or DEFAULT_OPSET)


def _default_folder(options: ExportOptions) -> Path:
    """build/NAME-PRECISION, with what differs from the model's default in between."""
    _, variant = registry.find(_model(options))
    parts = [variant.short_name]
    if options.features:
        parts.append("features")
    if options.resolution is not None and options.resolution != (variant.image_size, variant.image_size):
        parts.append("x".join(map(str, options.resolution)))
    return Path("build") / "-".join([*parts, options.precision])


def _load(
    options: ExportOptions, checkpoint: str | Path | Checkpoint | None, progress: Progress
) -> tuple[LoadedModel, ImageSet]:
    with progress.stage("load") as done:
        loaded = load_model(
            _model(options),
            checkpoint=checkpoint,
            num_classes=options.num_classes,
            image_size=options.resolution,
            features=options.features,
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
        lowered = tuple(lower(traced, form) for form in forms)
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
        proof = parity.compare(
            partial(eager.run, loaded.module),
            _candidates(files, options),
            images,
            options.precision,
            loaded.spec.outputs,
            classifier=not loaded.spec.features,
            out_of_range=out_of_range(lowered[0], peaks[0]),
        )
        done(_parity_line(proof, not loaded.spec.features))
    return files, proof


def _convert(lowered: Lowered, options: ExportOptions, peaks: dict[str, float]) -> _File:
    converted = convert(lowered, options.precision, max_abs=peaks, io=options.io)
    proto = to_proto(converted.model)
    check(proto)
    return _File(_FILES[lowered.form], lowered, converted, proto.SerializeToString())


def _candidates(files: tuple[_File, ...], options: ExportOptions) -> dict[str, parity.Opener]:
    """Ways to run the files on this machine, all of which must agree with eager."""
    candidates: dict[str, parity.Opener] = {}
    for file in files:
        if options.precision != "bf16":  # ONNX Runtime's CPU cannot run it
            candidates[f"{file.name} in {onnxruntime.NAME}"] = partial(_open, file.data)
        if options.precision != "fp32":
            rounding = partial(_open_rounded, file.converted)
            candidates[f"{file.name}, every tensor rounded to {options.precision}"] = rounding
    return candidates


def _open(data: bytes) -> onnxruntime.Session:
    return onnxruntime.open_session(data, threads=available_threads())


def _open_rounded(converted: Converted) -> onnxruntime.Session:
    return _open(to_proto(rounded(converted)).SerializeToString())


def _time(model: nn.Module, file: _File, images: ImageSet, options: ExportOptions, progress: Progress) -> BenchReport:
    """Eager, the exported file, and where that is not float32 its float32 form as well."""
    with progress.stage("time") as done, eager.threads(available_threads()):
        sessions = {}
        if options.precision != "fp32":
            sessions["fp32"] = _open(to_proto(file.lowered.model).SerializeToString())
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
        done(_time_line(rows))
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


def _time_line(rows: list[BenchRow]) -> str:
    by_batch = {row.batch: [each for each in rows if each.batch == row.batch] for row in rows}
    return "; ".join(
        f"batch {batch}: " + ", ".join(f"{row.runtime} {row.precision} {row.median_ms:.1f} ms" for row in each)
        for batch, each in by_batch.items()
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


def _parity_line(proof: ParityReport, classifier: bool) -> str:
    worst = max(proof.outputs, key=lambda output: output.rms_rel)
    verdict = "holds" if proof.passed else "FAILED"
    top1 = f"top-1 {100 * worst.top1_agreement:.0f} % " if classifier else ""
    return (
        f"{verdict}: rms error {100 * worst.rms_rel:.2g} % of the spread, cosine {worst.cosine:.6f}, "
        f"{top1}on {proof.images} images"
    )


def _closing_notes(proof: ParityReport, timing: BenchReport, options: ExportOptions) -> list[str]:
    notes = []
    if timing.unstable:
        notes.append(f"The machine was busy while timing ({timing.unstable}): do not rely on the latencies.")
    if proof.out_of_range:
        first = proof.out_of_range[0]
        notes.append(
            f"{len(proof.out_of_range)} values leave float16's range on these images and stay in float32, "
            f"first {first.module} ({first.op}, {first.max_abs:.3g}); all are in parity.json."
        )
    if options.precision == "fp16":
        notes.append(
            "No GPU was used: a CPU runs FP16 through casts, so its speed shows on a GPU only. No engine was built."
        )
    if options.precision == "bf16":
        notes.append(
            "ONNX Runtime's CPU has no BF16: parity is of the rounded graph, and only the FP32 form was timed."
        )
    return notes


def _replacement_notes(old: dict[str, Any] | None, spec: ModelSpec, options: ExportOptions) -> list[str]:
    """That the folder held another export, which its name does not tell apart."""
    if old is None:
        return []
    before, precision = old.get("model", {}), old.get("precision", {})
    pairs = {
        "weights": (before.get("weights"), spec.weights),
        "checkpoint": (before.get("checkpoint_sha256"), spec.checkpoint_sha256),
        "precision": (precision.get("requested"), options.precision),
        "type of inputs and outputs": (precision.get("io"), options.io),
    }
    changed = [f"{what} ({was})" for what, (was, now) in pairs.items() if was != now]
    return [f"The folder held an export with other {', '.join(changed)}; it is replaced."] if changed else []


def _write(
    result: ExportResult, files: tuple[_File, ...], images: ImageSet, options: ExportOptions, progress: Progress
) -> ExportResult:
    with progress.stage("write") as done, staged(result.folder) as staging:
        for file in files:
            (staging / file.name).write_bytes(file.data)
        (staging / "parity.json").write_text(to_json(result.parity), encoding="utf-8")
        (staging / "bench.json").write_text(to_json(result.bench), encoding="utf-8")
        (staging / "report.html").write_text(to_html(result), encoding="utf-8")
        graphs = {file.name: (file.converted, file.lowered) for file in files}
        manifest = manifest_of(result, graphs, images, options, staging)
        (staging / MANIFEST).write_text(to_json(manifest.content), encoding="utf-8")
        done(str(result.folder))
    return replace(result, manifest=manifest)

# SPDX-License-Identifier: Apache-2.0
"""The stages of an export in order, and the folder they end in."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from . import remarks
from .artifacts import ExportResult, Gain, Lowered, Manifest
from .blame import dearest_layers, slowest_layers
from .calibrating import CALIBRATION, calibrated, opened, planned
from .calibration.dataset import held_out
from .calibration.images import ImageSet, load_images
from .candidates import judge_candidates
from .deploying import write_own_repository
from .engines import Source, build_engine, wants_engine
from .errors import MetaformerExportError
from .export.collector import set_aside
from .export.lower import lower_all
from .export.ops.choosing import choose
from .export.serialize import WEIGHTS, let_go
from .export.trace import DEFAULT_OPSET, trace
from .models.checkpoints import Checkpoint
from .models.loading import LoadedModel, load_model
from .options import ExportOptions
from .output import MANIFEST, check_output, staged, writing
from .progress import Progress, Silent
from .proving import File, judge_of, prove, written
from .quantizing import FLOAT_FORM, INT8_FORM
from .report import manifest_of, outputs_of, to_html, to_json
from .request import asks_for_engine, default_folder, model_name, recognised, resolved
from .runtime import eager
from .runtime.tensorrt.engine import Engine
from .timing import Stopwatch


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
    dataset = opened(options, loaded.spec, progress)
    if dataset is not None and options.images is None:
        images = held_out(dataset)
    lowered, further = _lower(loaded, options, progress)
    notes += [*loaded.notes, *further]
    for text in notes:
        progress.note(text)
    calibration, plain = None, None
    if options.precision == "int8":
        first, *others = lowered
        first, calibration = calibrated(first, dataset, options, folder / CALIBRATION, progress)
        lowered, plain = (first,), next(iter(others), None)
    plan = planned(lowered[0], options)
    judge = judge_of(loaded.module, lowered[0], images)
    with staged(folder) as staging, set_aside():
        with writing(folder):
            ranges = None if calibration is None else calibration.ranges
            files, beyond = written(
                lowered, images, staging, options, progress, ranges=ranges, plain=plain, keep=plan.keep
            )
            if calibration is not None:
                calibration.write(staging / CALIBRATION)
            if files[0].large:
                eager.leave_weights_in(loaded.module, staging / f"{eager.NAME}{WEIGHTS}")
        engine, refusal = _engine(files, options, staging, progress)
        if refusal:
            notes.append(f"No engine: {refusal}")
            progress.note(notes[-1])
        proved = prove(files, beyond, judge, options, progress)
        proof = proved.report
        stopwatch = Stopwatch(loaded.module, images, options)
        candidates, of_engine = judge_candidates(files, engine, proved, judge, stopwatch, options, progress)
        timing = stopwatch.report(candidates, proof, progress)
        closing = remarks.closing_notes(proof, timing, options, engine)
        if calibration is not None:
            timing = replace(timing, gain=_explained(files[0], images, timing.gain))
            closing += dearest_layers(files[0], calibration.ranges, images, options, proof, progress)
            closing += remarks.gain_notes(timing)
        for text in (*closing, *remarks.replacement_notes(replaced, loaded.spec, options)):
            notes.append(text)
            progress.note(text)
        result = ExportResult(
            folder=folder,
            spec=loaded.spec,
            precision=options.precision,
            parity=proof,
            bench=timing,
            manifest=Manifest({}),
            notes=tuple(notes),
            engine=engine,
            engine_parity=of_engine,
            no_engine=refusal if asks_for_engine(options) else "",
        )
        with writing(folder):
            return _report(result, files, images, options, staging, progress)


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
            sizes=options.sizes,
            seed=options.seed,
        )
        images = load_images(options.images, loaded.spec)
        height, width = loaded.spec.image_size
        millions = loaded.spec.parameters / 1e6
        done(f"{loaded.spec.name}, {millions:.1f} M parameters, {height}x{width}, {images.source}")
    return loaded, images


def _lower(loaded: LoadedModel, options: ExportOptions, progress: Progress) -> tuple[tuple[Lowered, ...], list[str]]:
    """The form that the target runs best, and the plugin form where the model has mixer ops; or the form that is to be
    quantised, and the one that it is to be faster than, where that is another. With notes.
    """
    with progress.stage("trace") as done:
        traced = trace(loaded.module, loaded.spec, options.opset or DEFAULT_OPSET)
        done(f"{traced.model.graph.num_nodes()} nodes, opset {traced.opset}")
    with progress.stage("lower") as done:
        quantised = options.precision == "int8"
        forms = [FLOAT_FORM[options.target]]
        if quantised and INT8_FORM[options.target] not in forms:
            forms.insert(0, INT8_FORM[options.target])
        lowering, notes = choose(traced.model.graph, options.lowering, plugins=options.plugins)
        if not quantised and {"plugin", "native"} & set(lowering.values()):
            forms.append("plugin")
        lowered = lower_all(traced, forms, lowering)
        let_go(traced.model)
        done(", ".join(f"{each.model.graph.num_nodes()} nodes {each.form}" for each in lowered))
    return lowered, notes


def _proofs(result: ExportResult) -> dict[str, object]:
    """The proof of the files, and under "engine" that of an engine."""
    of_engine = {} if result.engine_parity is None else {"engine": asdict(result.engine_parity)}
    return asdict(result.parity) | of_engine


def _engine(
    files: tuple[File, ...], options: ExportOptions, staging: Path, progress: Progress
) -> tuple[Engine | None, str]:
    """The engine, where one is wanted, or why there is none; the files are proved and kept without it."""
    if not wants_engine(options):
        return None, ""
    try:
        return build_engine([Source(file.path, file.converted.model) for file in files], options, staging, progress), ""
    except MetaformerExportError as error:
        return None, str(error)


def _explained(file: File, images: ImageSet, gain: Gain | None) -> Gain | None:
    """With the layers that lose most, where the whole is slower than the float form."""
    return None if gain is None else replace(gain, costliest=slowest_layers(file, images, gain))


def _report(
    result: ExportResult,
    files: tuple[File, ...],
    images: ImageSet,
    options: ExportOptions,
    staging: Path,
    progress: Progress,
) -> ExportResult:
    """The reports beside the files."""
    with progress.stage("write") as done:
        (staging / "parity.json").write_text(to_json(_proofs(result)), encoding="utf-8")
        (staging / "bench.json").write_text(to_json(result.bench), encoding="utf-8")
        (staging / "report.html").write_text(to_html(result), encoding="utf-8")
        graphs = {file.name: (file.converted, file.lowered) for file in files}
        manifest = manifest_of(result, graphs, images, options)
        if options.triton and result.passed:
            write_own_repository(staging, result.spec, manifest.content)
        manifest.content["outputs"] = outputs_of(staging)
        (staging / MANIFEST).write_text(to_json(manifest.content), encoding="utf-8")
        done(str(result.folder))
    return replace(result, manifest=manifest)

# SPDX-License-Identifier: Apache-2.0
"""From what was asked to what exactly is exported: the model, defaults that depend on each other, the folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .artifacts import Precision
from .errors import CheckpointError, InputError
from .export.trace import BFLOAT16_OPSET, DEFAULT_OPSET, INT8_OPSET, OPSETS
from .models import registry
from .models.checkpoints import Checkpoint, read_checkpoint
from .models.identify import identify
from .options import DEFAULT_BATCH, DEFAULT_ENGINE, ENGINE_BATCH, CalibrationOptions, ExportOptions
from .progress import Progress
from .runtime import openvino
from .runtime.tensorrt import environment as tensorrt


def recognised(options: ExportOptions, progress: Progress) -> tuple[ExportOptions, Checkpoint | None, list[str]]:
    """The options with a model; where the checkpoint had to be read to find out which, also that and a note."""
    if options.model is not None or options.checkpoint is None:
        return options, None, []
    if options.sizes:
        raise InputError("--set changes a model; name it with --model.")
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


def model_name(options: ExportOptions) -> str:
    """The model that was asked for or recognised."""
    if options.model is None:
        raise InputError("an export needs a model, or a checkpoint to take it from.")
    return options.model


def resolved(options: ExportOptions) -> ExportOptions:
    """Defaults that depend on other options, and combinations that cannot be."""
    registry.find_neck(*registry.find(model_name(options)), options.neck, features=options.features)
    opset = options.opset
    if opset is not None and opset not in OPSETS:
        raise InputError(f"--opset {opset} is not supported; use {OPSETS.start} to {OPSETS[-1]}.")
    if options.precision == "bf16":
        if opset is not None and opset < BFLOAT16_OPSET:
            raise InputError(
                f"--bf16 needs opset {BFLOAT16_OPSET} or later (Conv has no bfloat16 before); got {opset}."
            )
        opset = opset or BFLOAT16_OPSET
    if options.target == "openvino":
        _check_openvino(options.precision)
    options = _for_engine(options)
    _check_calibration(options, opset or DEFAULT_OPSET)
    if options.io == "fp16" and options.precision != "fp16":
        raise InputError("--io fp16 goes with --fp16.")
    return replace(options, opset=opset or DEFAULT_OPSET)


def _check_openvino(precision: Precision) -> None:
    """InputError with the ways out where OpenVINO would run the file in another precision."""
    try:
        openvino.check(precision)
    except InputError as error:
        raise InputError(f"{error} Use --bf16, no precision (fp32), or --target onnx.") from error


def asks_for_engine(options: ExportOptions) -> bool:
    """Whether an export without an engine is not what was asked for: not so where `auto` only takes what there is."""
    return options.target == "tensorrt" or (options.target == "auto" and options.engine != DEFAULT_ENGINE)


def _for_engine(options: ExportOptions) -> ExportOptions:
    """The options with an engine's batch sizes, where one is to be built.

    Raises:
        MissingDependencyError: an engine is asked for, and TensorRT or a GPU is not there.
        InputError: options of an engine for a target that has none.
    """
    engine_options = options.engine != DEFAULT_ENGINE
    if options.target in ("onnx", "openvino"):
        if engine_options:
            raise InputError(f"options of an engine go with --target tensorrt or auto, not {options.target}.")
        return options
    if asks_for_engine(options):
        tensorrt.environment()
    if options.batch is DEFAULT_BATCH and tensorrt.available():
        return replace(options, batch=ENGINE_BATCH)
    return options


def _check_calibration(options: ExportOptions, opset: int) -> None:
    """InputError where INT8 has no ranges to come from, or ranges are given for another precision."""
    calibration = options.calibration
    if options.precision != "int8":
        if calibration != CalibrationOptions() or options.force:
            raise InputError("calibration options and --force go with --int8.")
        if options.plan is not None and options.precision != "fp16":
            raise InputError("--precision-plan goes with --int8 and --fp16.")
        return
    if calibration.data is None and calibration.ranges is None:
        raise InputError(
            "--int8 needs images to calibrate with, which random data cannot replace: --calib-data DIR, some hundred "
            "like those that the model will see; or --calibration FILE, the calibration.json of an earlier run."
        )
    if calibration.data is not None and calibration.ranges is not None:
        raise InputError("--calib-data and --calibration exclude each other.")
    if opset < INT8_OPSET:
        raise InputError(f"--int8 needs opset {INT8_OPSET} or later (scales in float16); got {opset}.")


def default_folder(options: ExportOptions) -> Path:
    """build/NAME-PRECISION, with what differs from the model's default in between."""
    _, variant = registry.find(model_name(options))
    parts = [variant.short_name]
    if options.features:
        parts.append("features")
    if options.neck:
        parts.append(options.neck)
    for name, value in options.sizes.items():
        parts.append(name + "x".join(map(str, value if isinstance(value, tuple) else (value,))))
    if options.resolution is not None and options.resolution != (variant.image_size, variant.image_size):
        parts.append("x".join(map(str, options.resolution)))
    return Path("build") / "-".join([*parts, options.precision])

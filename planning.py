# SPDX-License-Identifier: Apache-2.0
"""Which modules to spare low precision: ranked by what each costs, and as few as stay within a limit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .artifacts import Converted, Lowered
from .calibrating import CALIBRATION, calibrated, opened
from .calibration.dataset import Dataset
from .calibration.plan import PrecisionPlan
from .calibration.quantize import Ranges, quantize
from .calibration.switches import switched, switched_to_half
from .calibration.whole import write_whole
from .errors import ImageError, InputError
from .export.lower import lower_all
from .export.serialize import apart
from .export.trace import DEFAULT_OPSET, trace
from .models.loading import load_model
from .options import ExportOptions
from .output import writing
from .progress import Progress
from .quantizing import INT8_FORM, ON_CPU
from .request import model_name
from .runtime import bench
from .runtime.onnxruntime import open_session
from .runtime.saturation import weight_bits
from .runtime.sensitivity import Cost, Trial, fewest_kept, rank
from .runtime.threads import available_threads

PLAN, SENSITIVITY, PLOT = "precision-plan.toml", "sensitivity.json", "sensitivity.svg"
_RANKED_WITH = 8
"""Images that each module alone is tried on; the limit is held on all."""
_POINTS = (1, 2, 4, 8, 16, 32)
"""Modules kept at the points of the curve, beside none and the chosen number."""


@dataclass(frozen=True)
class Point:
    """A number of modules kept in high precision, the dearest first, and what that gives.

    Attributes:
        median_ms: at batch 1 in ONNX Runtime; None where low precision is not to be timed on a CPU.
    """

    kept: int
    rms_rel: float
    drop: float
    median_ms: float | None
    chosen: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """sensitivity.json: what low precision costs, by module and by how many are spared it.

    Attributes:
        modules: each alone, the dearest first.
        float_ms: of the float32 graph, as the points are timed.
    """

    model: str
    precision: str
    images: int
    labelled: bool
    all_low: Cost
    modules: tuple[tuple[str, Cost], ...]
    curve: tuple[Point, ...] = ()
    float_ms: float | None = None

    def write(self, path: Path) -> None:
        """As JSON."""
        content: dict[str, Any] = asdict(self)
        content["modules"] = [{"module": module, **asdict(cost)} for module, cost in self.modules]
        write_whole(path, json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class Request:
    """What `calibrate` is to find out.

    Attributes:
        sensitivity: whether to rank the modules.
        max_drop: points of top-1 that may be lost (percent of images with another first class, without labels;
            hundredths of the outputs' spread, for models without classes); None asks for no plan.
        held_out: images, none of them calibrated with, that this is judged by.
    """

    sensitivity: bool = False
    max_drop: float | None = None
    held_out: int = 64


@dataclass(frozen=True)
class _Prepared:
    """A graph that takes low precision module by module, and what is to be timed of it.

    Attributes:
        plain: the float form that it is to be faster than.
    """

    lowered: Lowered
    plain: Lowered
    trial: Trial
    ranges: Ranges | None


def run_calibration(
    options: ExportOptions, request: Request, folder: Path, progress: Progress
) -> tuple[Sensitivity | None, PrecisionPlan | None]:
    """Calibrate, and search as asked; calibration.json, sensitivity.json and the plan are left in `folder`.

    Raises:
        InputError: the images, the model or the limit cannot be used.
    """
    with progress.stage("load") as done:
        loaded = load_model(
            model_name(options),
            checkpoint=options.checkpoint,
            num_classes=options.num_classes,
            image_size=options.resolution,
            features=options.features,
            sizes=options.sizes,
            seed=options.seed,
        )
        done(f"{loaded.spec.name}, {loaded.spec.parameters / 1e6:.1f} M parameters")
    for text in loaded.notes:
        progress.note(text)
    dataset = opened(options, loaded.spec, progress)
    if dataset is None:
        raise InputError("calibrate needs images like those that the model will see: --calib-data DIR.")
    with progress.stage("lower") as done:
        forms = (INT8_FORM[options.target] if options.precision == "int8" else "portable", "portable")
        lowered, plain = lower_all(trace(loaded.module, loaded.spec, options.opset or DEFAULT_OPSET), forms)
        done(f"{lowered.model.graph.num_nodes()} nodes")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ranges: Ranges | None = None
    if options.precision == "int8":
        lowered, calibration = calibrated(lowered, dataset, options, folder / CALIBRATION, progress)
        calibration.write(folder / CALIBRATION)
        ranges = calibration.ranges
    if not request.sensitivity and request.max_drop is None:
        return None, None
    prepared = _prepared(lowered, plain, ranges, dataset, options, request)
    return _searched(prepared, options, request, folder, progress)


def _prepared(
    lowered: Lowered,
    plain: Lowered,
    ranges: Ranges | None,
    dataset: Dataset,
    options: ExportOptions,
    request: Request,
) -> _Prepared:
    images, labels = _held_out(dataset, request.held_out)
    found = switched_to_half(lowered)
    if ranges is not None:
        target = ON_CPU[options.target]
        found = switched(lowered, quantize(lowered, ranges, target, weight_bits=weight_bits()), target)
    session = open_session(apart(found.model), threads=available_threads(), literal=True)
    trial = Trial.begin(session, found.modules, images, labels, options.calibration.batch_size)
    return _Prepared(lowered, plain, trial, ranges)


def _held_out(dataset: Dataset, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    others = dataset.others(count)
    if not others.samples:
        raise ImageError(
            f"all {dataset.found} images in {dataset.source} are calibrated with, none is left to judge by; "
            "lower --calib-size."
        )
    return next(others.batches(len(others.samples)))


def _searched(
    prepared: _Prepared, options: ExportOptions, request: Request, folder: Path, progress: Progress
) -> tuple[Sensitivity, PrecisionPlan | None]:
    trial = prepared.trial
    with progress.stage("rank") as done:
        few = trial.first(_RANKED_WITH)
        with progress.count("modules", len(few.images) * len(trial.modules)) as told:
            ranking = rank(few, told)
        everything = trial.cost(trial.modules)
        dearest = ", ".join(f"{module} {100 * cost.rms_rel:.2g} %" for module, cost in ranking[:3])
        done(f"{len(ranking)} modules, together {100 * everything.rms_rel:.2g} % of the spread; dearest {dearest}")
    name, count = prepared.lowered.spec.name, len(trial.images)
    found = Sensitivity(name, options.precision, count, trial.labels is not None, everything, tuple(ranking))
    if request.max_drop is None:
        found.write(folder / SENSITIVITY)
        return found, None
    with progress.stage("search") as done:
        within = partial(_within, prepared, request.max_drop)
        with progress.count("trials", None) as told:
            kept = fewest_kept(trial, [module for module, _ in ranking], within, told)
        if kept is None:
            raise InputError(f"no plan stays within --max-drop {request.max_drop:g}: it is below nothing at all.")
        costs = dict(ranking)
        reasons = {module: f"alone it costs {100 * costs[module].rms_rel:.2g} % of the spread" for module in kept}
        plan = PrecisionPlan(name, options.precision, _limit(prepared, request.max_drop), reasons)
        plan.write(folder / PLAN)
        done(f"{len(kept)} of {len(ranking)} modules kept in high precision")
    with progress.stage("curve") as done:
        curve, float_ms = _curve(prepared, [module for module, _ in ranking], kept, options)
        done(", ".join(f"{point.kept} kept {100 * point.rms_rel:.2g} %" for point in curve))
    found = Sensitivity(name, options.precision, count, found.labelled, everything, tuple(ranking), curve, float_ms)
    found.write(folder / SENSITIVITY)
    return found, plan


def _within(prepared: _Prepared, max_drop: float, cost: Cost) -> bool:
    return (100 * cost.rms_rel if prepared.lowered.spec.features else cost.drop) <= max_drop


def _limit(prepared: _Prepared, max_drop: float) -> str:
    images = f"on {len(prepared.trial.images)} images that were not calibrated with"
    if prepared.lowered.spec.features:
        return f"an rms error of {max_drop:g} % of the spread {images}"
    if prepared.trial.labels is None:
        return f"another first class for {max_drop:g} % {images}"
    return f"{max_drop:g} points of top-1 {images}"


def _curve(
    prepared: _Prepared, ranking: Sequence[str], kept: Sequence[str], options: ExportOptions
) -> tuple[tuple[Point, ...], float | None]:
    """Error and latency with none, some and the chosen modules kept."""
    plans = {count: tuple(ranking[:count]) for count in (0, *_POINTS) if count < len(ranking)}
    plans[len(kept)] = tuple(kept)
    costs = {count: prepared.trial.cost(set(ranking) - set(modules)) for count, modules in sorted(plans.items())}
    times: Mapping[str, list[float]] = {}
    if prepared.ranges is not None:
        times = _timed(prepared, plans, options)
    points = tuple(
        Point(
            count,
            cost.rms_rel,
            cost.drop,
            bench.median(times[str(count)]) if times else None,
            chosen=plans[count] == tuple(kept),
        )
        for count, cost in costs.items()
    )
    return points, bench.median(times["float32"]) if times else None


def _timed(
    prepared: _Prepared, plans: Mapping[int, Sequence[str]], options: ExportOptions
) -> Mapping[str, list[float]]:
    image = prepared.trial.images[:1]
    graphs: dict[str, Lowered | Converted] = {"float32": prepared.plain}
    for count, modules in plans.items():
        keep = dict.fromkeys(modules, "on trial")
        graphs[str(count)] = quantize(
            prepared.lowered, prepared.ranges or {}, ON_CPU[options.target], keep=keep, weight_bits=weight_bits()
        )
    sessions = {name: open_session(apart(graph.model), threads=available_threads()) for name, graph in graphs.items()}
    runs = {name: partial(session, image) for name, session in sessions.items()}
    return bench.interleaved(runs, least=5, seconds=8.0)

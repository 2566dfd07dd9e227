# SPDX-License-Identifier: Apache-2.0
"""The ranges of a quantised export: of the images given, or those of an earlier run where nothing has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .artifacts import Lowered, ModelSpec
from .calibration.dataset import Dataset, open_dataset
from .calibration.equalize import Exponents, equalized
from .calibration.plan import PrecisionPlan, check_plan, read_plan
from .calibration.quantize import observed
from .calibration.table import Calibration, Key, check_for, key_of, read_calibration
from .calibration.thresholds import RANGES
from .equalizing import equalization
from .errors import InputError
from .export.graph import module_of
from .export.serialize import apart
from .options import CalibrationOptions, ExportOptions
from .progress import Progress
from .runtime.ranges import extremes, histograms
from .runtime.threads import available_threads

CALIBRATION = "calibration.json"


def opened(options: ExportOptions, spec: ModelSpec, progress: Progress) -> Dataset | None:
    """The images to calibrate with; None where none were given."""
    wanted = options.calibration
    if wanted.data is None:
        return None
    with progress.stage("images") as done:
        with progress.count("read", None) as told:
            dataset = open_dataset(wanted.data, spec, size=wanted.size, seed=options.seed, told=lambda: told(1))
        how, size = spec.preprocessing, spec.image_size
        prepared = f"{how.interpolation} to {size[0]}x{size[1]}, crop {how.crop:g}, mean {how.mean}, std {how.std}"
        done(f"{dataset.summary()}; {prepared if dataset.samples[0].row is None else 'preprocessed'}")
    return dataset


def calibrated(
    lowered: Lowered, dataset: Dataset | None, options: ExportOptions, previous: Path, progress: Progress
) -> tuple[Lowered, Calibration]:
    """Ranges of every tensor that may be quantised, and the graph that they are of: equalised where that helps.

    Args:
        dataset: None takes the ranges that the options name.
        previous: the calibration.json that an earlier export may have left; taken where it is of the same graph,
            weights, images and settings.

    Raises:
        ImageError, CalibrationError: the images, or the ranges that were given, cannot be used.
    """
    wanted = options.calibration
    if dataset is None:
        with progress.stage("calibrate") as done:
            path = Path(str(wanted.ranges))
            given = read_calibration(path)
            graph = _equalized_again(lowered, given)
            check_for(given, path, _key(graph, given.key.data_sha256, wanted), lowered.spec.name)
            done(f"ranges of {path}: {given.source}, {given.key.method}")
        return graph, given
    known = _known(previous, lowered, dataset, wanted)
    if known is not None:
        with progress.stage("calibrate") as done:
            done(f"ranges of {previous} again: the same graph, weights, images and settings")
        return known
    exponents: Exponents = {}
    if wanted.equalize:
        with progress.stage("equalize") as done:
            exponents = equalization(lowered, dataset, wanted, progress, done)
    graph = equalized(lowered, exponents) if exponents else lowered
    with progress.stage("calibrate") as done:
        ranges = ranges_of(graph, dataset, wanted, progress)
        done(f"{len(ranges)} tensors on {len(dataset.samples)} images, {wanted.method}")
    key = _key(graph, dataset.sha256, wanted)
    powers = {name: tuple(each) for name, each in exponents.items()}
    return graph, Calibration(key, lowered.spec.name, dataset.summary(), len(dataset.samples), ranges, powers)


def planned(lowered: Lowered, options: ExportOptions) -> PrecisionPlan:
    """The precision plan that the options name, or one that keeps nothing.

    Raises:
        CalibrationError: it cannot be read, or is of another model or precision.
    """
    model = lowered.spec.name
    if options.plan is None:
        return PrecisionPlan(model, options.precision, "")
    path = Path(options.plan)
    plan = read_plan(path)
    modules = {module_of(node) or "model" for node in lowered.model.graph}
    check_plan(plan, path, model, options.precision, modules)
    return plan


def ranges_of(
    lowered: Lowered, dataset: Dataset, wanted: CalibrationOptions, progress: Progress
) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of each tensor that eight bits are to hold."""
    names, count, threads = observed(lowered), len(dataset.samples), available_threads()

    def batches() -> Iterator[NDArray[np.float32]]:
        return (images for images, _ in dataset.batches(wanted.batch_size))

    with progress.count("extremes", count) as told:
        seen = extremes(lowered.model, names, batches, threads=threads, told=told)
    if wanted.method == "minmax":
        return {name: (each.low, each.high) for name, each in seen.items()}
    with progress.count("histograms", count) as told:
        counted = histograms(lowered.model, seen, batches, threads=threads, told=told)
    with progress.step(f"{wanted.method} over {len(counted)} histograms"):
        return {name: RANGES[wanted.method](each) for name, each in counted.items()}


def _key(lowered: Lowered, data_sha256: str, wanted: CalibrationOptions) -> Key:
    content = apart(lowered.model)
    return key_of(content.graph, content.weights, data_sha256, wanted.method, equalize=wanted.equalize)


def _equalized_again(lowered: Lowered, calibration: Calibration) -> Lowered:
    """The graph as it was calibrated; where it has no such tensors, as it is, which is another graph."""
    try:
        return equalized(lowered, calibration.equalized) if calibration.equalized else lowered
    except (KeyError, ValueError):
        return lowered


def _known(
    path: Path, lowered: Lowered, dataset: Dataset, wanted: CalibrationOptions
) -> tuple[Lowered, Calibration] | None:
    """Ranges of an equal key and their graph, if the file has them; any other file is not looked at."""
    try:
        found = read_calibration(path)
    except InputError:
        return None
    graph = _equalized_again(lowered, found)
    return (graph, found) if found.key == _key(graph, dataset.sha256, wanted) else None

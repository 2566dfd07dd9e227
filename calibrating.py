# SPDX-License-Identifier: Apache-2.0
"""The ranges of a quantised export: of the images given, or those of an earlier run where nothing has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .artifacts import Lowered, ModelSpec
from .calibration.dataset import Dataset, open_dataset
from .calibration.quantize import observed
from .calibration.table import Calibration, Key, check_for, key_of, read_calibration
from .calibration.thresholds import RANGES
from .errors import InputError
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
) -> Calibration:
    """Ranges of every tensor that may be quantised.

    Args:
        dataset: None takes the ranges that the options name.
        previous: the calibration.json that an earlier export may have left; taken where it is of the same graph,
            weights, images and method.

    Raises:
        ImageError, CalibrationError: the images, or the ranges that were given, cannot be used.
    """
    with progress.stage("calibrate") as done:
        if dataset is None:
            path = Path(str(options.calibration.ranges))
            given = read_calibration(path)
            check_for(given, path, _key(lowered, given.key.data_sha256, options), lowered.spec.name)
            done(f"ranges of {path}: {given.source}, {given.key.method}")
            return given
        key = _key(lowered, dataset.sha256, options)
        known = _known(previous, key)
        if known is not None:
            done(f"ranges of {previous} again: the same graph, weights, images and method")
            return known
        ranges = ranges_of(lowered, dataset, options.calibration, progress)
        done(f"{len(ranges)} tensors on {len(dataset.samples)} images, {options.calibration.method}")
    return Calibration(key, lowered.spec.name, dataset.summary(), len(dataset.samples), ranges)


def ranges_of(
    lowered: Lowered, dataset: Dataset, wanted: CalibrationOptions, progress: Progress
) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of each tensor that eight bits are to hold."""
    method, size, threads = wanted.method, wanted.batch_size, available_threads()
    names, count = observed(lowered), len(dataset.samples)

    def batches() -> Iterator[NDArray[np.float32]]:
        return (images for images, _ in dataset.batches(size))

    with progress.count("extremes", count) as told:
        seen = extremes(lowered.model, names, batches, threads=threads, told=told)
    if method == "minmax":
        return {name: (each.low, each.high) for name, each in seen.items()}
    with progress.count("histograms", count) as told:
        counted = histograms(lowered.model, seen, batches, threads=threads, told=told)
    with progress.step(f"{method} over {len(counted)} histograms"):
        return {name: RANGES[method](each) for name, each in counted.items()}


def _key(lowered: Lowered, data_sha256: str, options: ExportOptions) -> Key:
    content = apart(lowered.model)
    return key_of(content.graph, content.weights, data_sha256, options.calibration.method)


def _known(path: Path, key: Key) -> Calibration | None:
    """Ranges of an equal key, if the file has them; any other file is not looked at."""
    try:
        found = read_calibration(path)
    except InputError:
        return None
    return found if found.key == key else None

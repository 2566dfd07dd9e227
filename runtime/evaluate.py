# SPDX-License-Identifier: Apache-2.0
"""How often an exported classifier is right, and how often it says what eager PyTorch says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..calibration.dataset import Dataset
from ..errors import InputError

Runner = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


@dataclass(frozen=True)
class Evaluation:
    """Shares in percent; None where not all images have labels, or no eager model to compare with.

    Attributes:
        top5: label among the first five classes; None for fewer than six classes.
        agreement: the first class is eager's.
        rms_rel: root mean square of the differences to eager's logits over the spread of these.
        images_per_second: of the exported model alone, at the batch size of the evaluation.
    """

    images: int
    batch_size: int
    top1: float | None
    top5: float | None
    eager_top1: float | None
    agreement: float | None
    rms_rel: float | None
    images_per_second: float


def evaluate(
    run: Runner,
    dataset: Dataset,
    *,
    batch_size: int,
    num_classes: int,
    reference: Runner | None = None,
    told: Callable[[int], object] = int,
) -> Evaluation:
    """Run all samples through a classifier, and through eager where it is given.

    Args:
        run: a batch (B, C, H, W) -> logits (B, classes).
        reference: eager, likewise.
        told: called with the number of images after each batch.

    Raises:
        InputError: the labels are not those of the model's classes.
    """
    check_labels(dataset, num_classes)
    logits, expected, labels = [], [], []
    seconds = 0.0
    for images, given in dataset.batches(batch_size):
        started = time.perf_counter()
        logits.append(run(images)[0])
        seconds += time.perf_counter() - started
        if reference is not None:
            expected.append(reference(images)[0])
        if given is not None and dataset.labelled:
            labels.append(given)
        told(len(images))
    got = np.concatenate(logits)
    truth = np.concatenate(labels) if labels else None
    want = np.concatenate(expected) if expected else None
    return Evaluation(
        images=len(got),
        batch_size=batch_size,
        top1=None if truth is None else _among(got, truth, 1),
        top5=None if truth is None or num_classes <= 5 else _among(got, truth, 5),
        eager_top1=None if truth is None or want is None else _among(want, truth, 1),
        agreement=None if want is None else _among(got, want.argmax(-1), 1),
        rms_rel=None if want is None else float(np.sqrt(np.mean((got - want) ** 2)) / (want.std() or 1.0)),
        images_per_second=len(got) / seconds,
    )


def check_labels(dataset: Dataset, num_classes: int) -> None:
    """InputError if the data has labels that the model has no class for."""
    if dataset.classes and len(dataset.classes) != num_classes:
        first = ", ".join(dataset.classes[:3])
        raise InputError(
            f"{dataset.source} has {len(dataset.classes)} folders of classes ({first}, ...), the model {num_classes} "
            "classes; give a folder for each class of the model, or images without folders."
        )
    wrong = next(
        (each for each in dataset.samples if each.label is not None and not 0 <= each.label < num_classes), None
    )
    if wrong is not None:
        raise InputError(f"{wrong.name} has label {wrong.label}, the model has classes 0 to {num_classes - 1}.")


def _among(logits: NDArray[np.float32], classes: NDArray[np.int64], first: int) -> float:
    """Percentage of rows whose class is among the first ones; NaN is never."""
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :first]
    finite = np.isfinite(logits).all(-1)
    return float(100 * ((order == classes[:, None]).any(-1) & finite).mean())

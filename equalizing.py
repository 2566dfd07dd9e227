# SPDX-License-Identifier: Apache-2.0
"""Whether to equalise a model: tried on a few images, kept where it lowers the error on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .artifacts import Lowered
from .calibration.dataset import Dataset, held_out
from .calibration.equalize import Exponents, equalized, exponents_for, places
from .calibration.quantize import observed, quantize
from .calibration.thresholds import RANGES
from .export.serialize import apart
from .options import CalibrationOptions
from .progress import Progress
from .runtime.channels import channel_samples
from .runtime.onnxruntime import open_session
from .runtime.ranges import extremes, histograms
from .runtime.saturation import weight_bits
from .runtime.threads import available_threads

_SHOWN = 16
"""Images that ranges are from while this is decided."""
_HELD_OUT = 8


def equalization(
    lowered: Lowered,
    dataset: Dataset,
    wanted: CalibrationOptions,
    progress: Progress,
    done: Callable[[str], None],
) -> Exponents:
    """What to divide the channels of each tensor by; nothing where that does not lower the error.

    Args:
        done: told what came out.
    """
    threads = available_threads()
    shown = [images for images, _ in dataset.first(_SHOWN).batches(min(wanted.batch_size, _SHOWN))]
    with progress.step("channels of each tensor"):
        samples = channel_samples(lowered.model, shown, threads)
        found = {
            place.name: exponents_for(place, samples[place.name], RANGES[wanted.method], weight_bits())
            for place in places(lowered.model.graph)
        }
    exponents = {name: powers for name, powers in found.items() if powers is not None}
    if not exponents:
        done(f"nothing to gain in {len(found)} places")
        return {}
    images = held_out(dataset, _HELD_OUT).batch
    want = _outputs(lowered, images)
    errors = []
    for title, graph in (("as it is", lowered), ("equalised", equalized(lowered, exponents))):
        with progress.step(f"{title}, quantised for a trial"):
            got = _outputs(graph, images, shown, wanted)
            errors.append(float(np.sqrt(((got - want) ** 2).mean()) / (want.std() or 1.0)))
    plain, equal = errors
    verdict = f"rms error {100 * plain:.2g} % of the spread as it is, {100 * equal:.2g} % equalised"
    helps = equal < plain
    done(
        f"{'on' if helps else 'off'}, {len(exponents)} of {len(found)} places: {verdict}, on {len(images)} other images"
    )
    return exponents if helps else {}


def _outputs(
    lowered: Lowered,
    images: NDArray[np.float32],
    shown: Sequence[NDArray[np.float32]] = (),
    wanted: CalibrationOptions | None = None,
) -> NDArray[np.float32]:
    """The first output of a graph; quantised with ranges of the images shown, if any are."""
    threads = available_threads()
    model = lowered.model
    if wanted is not None:
        seen = extremes(model, observed(lowered), lambda: shown, threads=threads)
        counted = histograms(model, seen, lambda: shown, threads=threads)
        ranges = {name: RANGES[wanted.method](each) for name, each in counted.items()}
        model = quantize(lowered, ranges, "cpu", weight_bits=weight_bits()).model
    session = open_session(apart(model), threads=threads, literal=True)
    return np.concatenate([session(image[None])[0] for image in images])

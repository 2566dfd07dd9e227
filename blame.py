# SPDX-License-Identifier: Apache-2.0
"""Which layers are to blame where a quantised model is not good."""

from __future__ import annotations

from .artifacts import Gain, ParityReport
from .calibration.images import ImageSet
from .calibration.quantize import Ranges, quantize
from .calibration.switches import switched
from .export.serialize import apart, serialize
from .options import ExportOptions
from .progress import Progress
from .proving import File
from .quantizing import ON_CPU
from .runtime.onnxruntime import open_session
from .runtime.profile import by_module, lost
from .runtime.saturation import weight_bits
from .runtime.sensitivity import Trial, rank
from .runtime.threads import available_threads

_NAMED = 5


def dearest_layers(
    file: File, ranges: Ranges, images: ImageSet, options: ExportOptions, proof: ParityReport, progress: Progress
) -> list[str]:
    """In words, the modules whose eight bits cost most at the output, if parity failed."""
    if proof.passed:
        return []
    target = ON_CPU[options.target]
    with progress.stage("blame") as done:
        found = switched(file.lowered, quantize(file.lowered, ranges, target, weight_bits=weight_bits()), target)
        session = open_session(apart(found.model), threads=available_threads(), literal=True)
        trial = Trial.begin(session, found.modules, images.batch, None, len(images.batch))
        with progress.count("modules", len(images.batch) * len(found.modules)) as told:
            ranking = rank(trial, told)[:_NAMED]
        named = ", ".join(f"{module} ({100 * cost.rms_rel:.2g} % of the spread)" for module, cost in ranking)
        done(named)
    return [
        f"In eight bits these modules cost most, each alone: {named}. metaformer-export calibrate --max-drop finds "
        "those to keep in high precision."
    ]


def slowest_layers(file: File, images: ImageSet, gain: Gain | None) -> tuple[tuple[str, float], ...]:
    """The modules that take longer than in float, with the milliseconds, if the whole model does; in ONNX Runtime."""
    if gain is None or gain.pays:
        return ()
    image = images.take(0, gain.batch)
    plain = serialize(file.float_form.model)
    if plain.weights:  # beside the graph: too large for a second copy
        return ()
    return lost(by_module(file.path, image, available_threads()), by_module(plain.graph, image, available_threads()))

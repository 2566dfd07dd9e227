# SPDX-License-Identifier: Apache-2.0
"""What values the channels of a graph's tensors take over some images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibration.equalize import Place, Samples, places
from ..export.serialize import taken_apart
from .onnxruntime import open_session

_ROWS = 512
"""Places at which the channels of a tensor are looked at, over all images."""


def channel_samples(model: ir.Model, batches: Sequence[NDArray[np.float32]], threads: int) -> dict[str, Samples]:
    """Of every tensor that can be equalised, by its name."""
    observed = model.clone()
    found = list(places(observed.graph))
    if not found:
        return {}
    values = {str(value.name): value for place in found for value in _values(place)}
    observed.graph.outputs[:] = list(values.values())
    session = open_session(taken_apart(observed), threads=threads, fuse=False)
    kept: dict[str, list[NDArray[np.float32]]] = {name: [] for name in values}
    axes = {str(value.name): place.axis for place in found for value in _values(place)}
    images = sum(len(batch) for batch in batches)
    for batch in batches:
        for image in batch:  # each alone: all these tensors are in memory
            for (name, axis), tensor in zip(axes.items(), session(image[None]), strict=True):
                kept[name].append(_rows(tensor, axis, -(-_ROWS // images)))
    rows = {name: np.concatenate(each) for name, each in kept.items()}
    return {
        place.name: Samples(rows[place.name], None if len(_values(place)) == 1 else rows[str(_values(place)[1].name)])
        for place in found
    }


def _values(place: Place) -> list[ir.Value]:
    """The tensor, and of a gate the factor that can be scaled."""
    made = place.source.outputs[0]
    return [place.tensor] if made is place.tensor else [place.tensor, made]


def _rows(tensor: NDArray[np.float32], axis: int, count: int) -> NDArray[np.float32]:
    """Channels (count, C) at places evenly spread over a tensor."""
    rows = np.moveaxis(tensor, axis, -1).reshape(-1, tensor.shape[axis])
    return np.array(rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)])

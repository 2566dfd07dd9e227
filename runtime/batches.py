# SPDX-License-Identifier: Apache-2.0
"""A batch of any size through a session that takes some sizes only: cut at its largest, filled up to its smallest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError

DYNAMIC = -1
"""A size that is known when the model runs."""


@dataclass(frozen=True)
class Part:
    """Images of a call that are computed together.

    Attributes:
        first, end: the images are first, first + 1, ... end - 1 of the call.
        size: of the batch that is computed; where the images are fewer, the last one is repeated.
    """

    first: int
    end: int
    size: int

    @property
    def images(self) -> int:
        return self.end - self.first


def parts_of(images: int, smallest: int, largest: int) -> tuple[Part, ...]:
    """The parts of a call, for a session whose batch is from `smallest` to `largest`.

    Raises:
        InputError: there are no images.
    """
    if images < 1:
        raise InputError("a batch without images was given; it needs one image at least.")
    ends = [(first, min(first + largest, images)) for first in range(0, images, largest)]
    return tuple(Part(first, end, max(end - first, smallest)) for first, end in ends)


def rows_of(array: NDArray[Any], part: Part) -> NDArray[Any]:
    """A part's rows of an array with a row for every image; (size, ...)."""
    rows = array[part.first : part.end]
    missing = part.size - part.images
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def batch_axis(name: str, shape: Sequence[int], batch: int) -> int | None:
    """Along which axis an output has its images; None if it is the same for all.

    Args:
        shape: of the output, as the engine says it.
        batch: the first size of the engine's input; DYNAMIC, or the one batch that the engine takes.

    Raises:
        EngineError: more than one size of the output is dynamic.
    """
    if batch != DYNAMIC:
        return 0 if len(shape) > 0 and shape[0] % batch == 0 else None
    axes = [axis for axis, size in enumerate(shape) if size == DYNAMIC]
    if len(axes) > 1:
        raise EngineError(
            f"output {name} is {tuple(shape)}: it does not say which size holds the images, so that a batch outside "
            "the engine's cannot be cut or filled up. Build it with another --batch MIN:OPT:MAX."
        )
    return axes[0] if axes else None


def joined(name: str, pieces: Sequence[NDArray[Any]], parts: Sequence[Part], axis: int | None) -> NDArray[Any]:
    """An output of the whole call from that of its parts, without what repeated images gave.

    Args:
        axis: along which the images lie, each with the same number of rows, in order; None if the output has none.

    Raises:
        EngineError: an output's rows cannot be told apart by image.
    """
    if axis is None:
        return pieces[0]
    kept = []
    for piece, part in zip(pieces, parts, strict=True):
        each, rest = divmod(piece.shape[axis], part.size)
        if rest:
            raise EngineError(
                f"output {name} is {piece.shape} for {part.size} images, which have no equal share of it. "
                "Build the engine with another --batch MIN:OPT:MAX."
            )
        kept.append(piece.take(range(each * part.images), axis))
    return np.concatenate(kept, axis)

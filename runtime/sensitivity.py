# SPDX-License-Identifier: Apache-2.0
"""What the low precision of each module costs at the output, and which few to spare it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..calibration.switches import SWITCHES
from .session import Session

_LEFT_OUT = 12
"""Of the modules that are kept, so many are tried without."""


@dataclass(frozen=True)
class Cost:
    """Of a graph in low precision against the same graph in float32, on images that it was not calibrated with.

    Attributes:
        rms_rel: root mean square of the differences over the spread of the float32 outputs.
        drop: points of top-1 that are lost, or, without labels, percent of images with another first class; 0 for
            models without classes.
    """

    rms_rel: float
    drop: float


@dataclass(frozen=True)
class Trial:
    """Asks a switched graph what it costs to have some of its modules in low precision.

    Attributes:
        modules: of the graph, in the order of its switches.
        images: (N, C, H, W).
        labels: (N,); None for unlabelled images.
        want: the first output with all switches off.
    """

    session: Session
    modules: tuple[str, ...]
    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    batch_size: int
    want: NDArray[np.float32]

    @classmethod
    def begin(
        cls,
        session: Session,
        modules: tuple[str, ...],
        images: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
        batch_size: int,
    ) -> Trial:
        """Run the images in float32, to compare with."""
        off = np.zeros(len(modules), np.int64)
        return cls(session, modules, images, labels, batch_size, _run(session, images, off, batch_size))

    def first(self, count: int) -> Trial:
        """The same with fewer images."""
        labels = None if self.labels is None else self.labels[:count]
        return Trial(self.session, self.modules, self.images[:count], labels, self.batch_size, self.want[:count])

    def cost(self, low: Collection[str]) -> Cost:
        """Of these modules in low precision, all others in float32."""
        switches = np.array([module in low for module in self.modules], np.int64)
        got = _run(self.session, self.images, switches, self.batch_size)
        rms = float(np.sqrt(np.mean((got - self.want) ** 2)) / (self.want.std() or 1.0))
        return Cost(rms if np.isfinite(rms) else float("inf"), self._drop(got))

    def _drop(self, got: NDArray[np.float32]) -> float:
        if self.want.ndim != 2:
            return 0.0
        before, after = self.want.argmax(-1), got.argmax(-1)
        if self.labels is None:
            return 100 * float((before != after).mean())
        return 100 * float((before == self.labels).mean() - (after == self.labels).mean())


def rank(trial: Trial, told: Callable[[int], object] = int) -> list[tuple[str, Cost]]:
    """Every module with what it costs alone, the dearest first.

    Args:
        told: called with the number of images after each module.
    """
    found = []
    for module in trial.modules:
        found.append((module, trial.cost({module})))
        told(len(trial.images))
    return sorted(found, key=lambda pair: (-pair[1].rms_rel, pair[0]))


def fewest_kept(
    trial: Trial,
    ranking: Sequence[str],
    within: Callable[[Cost], bool],
    told: Callable[[int], object] = int,
) -> tuple[str, ...] | None:
    """The shortest beginning of a ranking whose modules have to stay in float32 for the cost to be within limits, less
    the cheapest of them that need not; None if all of them do not do.

    Args:
        told: called with the number of images after each trial.
    """

    def enough(kept: Collection[str]) -> bool:
        cost = trial.cost(set(ranking) - set(kept))
        told(len(trial.images))
        return within(cost)

    low, high = 0, len(ranking)
    if enough(()):
        return ()
    if not enough(ranking):
        return None
    while low < high:
        middle = (low + high) // 2
        if enough(ranking[:middle]):
            high = middle
        else:
            low = middle + 1
    kept = list(ranking[:high])
    for module in kept[-2 : -2 - _LEFT_OUT : -1]:  # without the last one it is not enough, as the search has seen
        without = [each for each in kept if each != module]
        if enough(without):
            kept = without
    return tuple(kept)


def _run(
    session: Session, images: NDArray[np.float32], switches: NDArray[np.int64], batch_size: int
) -> NDArray[np.float32]:
    given = {SWITCHES: switches}
    batches = range(0, len(images), batch_size)
    return np.concatenate([session(images[start : start + batch_size], given)[0] for start in batches])

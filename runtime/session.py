# SPDX-License-Identifier: Apache-2.0
"""What every target in this folder gives: a model that can be called, and what opens one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..export.serialize import ModelFile


class Session(Protocol):
    """A loaded model.

    Attributes:
        at_once: how many calls it computes side by side.
    """

    @property
    def at_once(self) -> int: ...

    def __call__(
        self, batch: NDArray[np.floating], given: Mapping[str, NDArray[np.int64]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Outputs in order for a batch (B, C, H, W), and for clusterings given by name where the graph takes any."""

    def release(self) -> None:
        """Give back what earlier batches left behind, where the runtime can; the next call allocates again."""


class OpenSession(Protocol):
    """Loads a model into one runtime."""

    def __call__(self, model: ModelFile | Path, *, threads: int, at_once: int = 1) -> Session:
        """A session that computes with that many threads, which as many calls as it can share, up to `at_once`."""


def run_each(
    run: Callable[..., list[NDArray[np.float32]]], calls: Sequence[tuple[Any, ...]]
) -> list[list[NDArray[np.float32]]]:
    """The outputs of every call, by its arguments; of a session, as many as it takes at once."""
    at_once = getattr(run, "at_once", 1)
    if at_once == 1:
        return [run(*call) for call in calls]
    with ThreadPoolExecutor(at_once, "run") as pool:
        return list(pool.map(lambda call: run(*call), calls))

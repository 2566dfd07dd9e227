# SPDX-License-Identifier: Apache-2.0
"""What every target in this folder gives: a model that can be called, and what opens one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..export.serialize import ModelFile


class Session(Protocol):
    """A loaded model."""

    def __call__(
        self, batch: NDArray[np.floating], given: Mapping[str, NDArray[np.int64]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Outputs in order for a batch (B, C, H, W), and for clusterings given by name where the graph takes any."""

    def release(self) -> None:
        """Give back what earlier batches left behind, where the runtime can; the next call allocates again."""


class OpenSession(Protocol):
    """Loads a model into one runtime."""

    def __call__(self, model: ModelFile | Path, *, threads: int) -> Session:
        """A session that computes with that many threads."""

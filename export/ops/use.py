# SPDX-License-Identifier: Apache-2.0
"""A mixer op at the size that a model runs it at, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .kernel import Attributes


@dataclass(frozen=True)
class Use:
    """One mixer op as models run it.

    Attributes:
        shapes: sizes of the inputs, by the names of the op's kernel; the batch is -1.
        attributes: the operator's own.
    """

    op_type: str
    shapes: Mapping[str, tuple[int, ...]]
    attributes: Attributes

    @property
    def size(self) -> str:
        """Of the first input without the batch: "240x14x14"."""
        return "x".join(str(length) for length in next(iter(self.shapes.values()))[1:])

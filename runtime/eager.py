# SPDX-License-Identifier: Apache-2.0
"""Eager PyTorch, the reference that everything else is held against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

NAME = "eager"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with that many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(model: nn.Module, batch: NDArray[np.floating]) -> list[NDArray[np.float32]]:
    """Outputs of the model for a batch (B, C, H, W), in order."""
    with torch.inference_mode():
        outputs = model(torch.from_numpy(np.ascontiguousarray(batch)))
    several = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [output.numpy() for output in several]

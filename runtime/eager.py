# SPDX-License-Identifier: Apache-2.0
"""Eager PyTorch, the reference that everything else is held against."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def leave_weights_in(model: nn.Module, path: Path) -> None:
    """Have the module read its weights from a file at `path`, which has no name any more afterwards: in memory are
    those that were used last, until `memory.trim` drops them. The numbers are the same.
    """
    tensors = [*model.parameters(), *model.buffers()]
    starts = np.cumsum([0, *(-(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE for tensor in tensors)]).tolist()
    with path.open("w+b") as file:
        for tensor, start in zip(tensors, starts, strict=False):
            file.seek(start)
            file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
        file.truncate(starts[-1])
        file.flush()
        mapped = mmap.mmap(file.fileno(), starts[-1], access=mmap.ACCESS_WRITE)  # shared
    path.unlink()
    for tensor, start in zip(tensors, starts, strict=False):
        weights = torch.frombuffer(mapped, dtype=tensor.dtype, count=tensor.numel(), offset=start)
        tensor.data = weights.view(tensor.shape)


def run(model: nn.Module, batch: NDArray[np.floating]) -> list[NDArray[np.float32]]:
    """Outputs of the model for a batch (B, C, H, W), in order."""
    with torch.inference_mode():
        outputs = model(torch.from_numpy(np.ascontiguousarray(batch)))
    several = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [output.numpy() for output in several]

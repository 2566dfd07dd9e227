# SPDX-License-Identifier: Apache-2.0
"""Eager PyTorch, the reference that everything else is held against."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

NAME = "eager"


def run(model: nn.Module, batch: NDArray[np.floating]) -> list[NDArray[np.float32]]:
    """Outputs of the model for a batch (B, C, H, W), in order."""
    with torch.inference_mode():
        outputs = model(torch.from_numpy(np.ascontiguousarray(batch)))
    several = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [output.numpy() for output in several]

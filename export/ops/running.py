# SPDX-License-Identifier: Apache-2.0
"""Run a mixer op's kernel on PyTorch tensors: on a GPU, or on a CPU in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

from typing import Any

import torch

from .kernel import Attributes, Kernel

_TYPES = {"fp32": torch.float32, "i64": torch.int64}


def run(
    kernel: Kernel, inputs: tuple[torch.Tensor, ...], attributes: Attributes, *, function: Any = None
) -> torch.Tensor:
    """The operator's output, on the device of its inputs.

    Args:
        inputs: contiguous, in the order of the node; the first one's first size is the batch.
        function: the kernel, if it is loaded already.

    Raises:
        ValueError: the kernel cannot run at these sizes, or an input is not contiguous.
    """
    shapes = {name: tuple(each.shape) for name, each in zip(kernel.inputs, inputs, strict=True)}
    if refusal := kernel.refusal(shapes, attributes):
        raise ValueError(refusal)
    for name, each in zip(kernel.inputs, inputs, strict=True):
        if not each.is_contiguous():
            raise ValueError(f"{name} is not contiguous")
    first = inputs[0]
    dtype = first.dtype if kernel.output == "float" else _TYPES[kernel.output]
    output = first.new_empty(kernel.output_shape(shapes, attributes), dtype=dtype)
    launch = kernel.launch(shapes, attributes)
    batch = first.shape[0]
    grid = (-(-batch // launch.images), *launch.programs)
    (function or kernel.load())[grid](*inputs, batch, output, **launch.constants, num_warps=launch.warps)
    return output

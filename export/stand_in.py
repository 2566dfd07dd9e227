# SPDX-License-Identifier: Apache-2.0
"""One batch size that stands for any, while a model is traced.

torch.export reasons about every shape that a symbolic batch runs through, and takes three times as long as with a
number. A prime that no size in a model has for a factor can be found again afterwards: what it divides is so many
times the batch. It shows among the constants of a graph, too, where a model computes with the size of its batch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

STAND_IN = 1_000_003
BATCH = "batch"
"""The symbolic dimension that takes its place."""
_NUMBERS = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT, ir.AttributeType.TENSOR)
"""Attributes that may hold it."""


def example(channels: int, image_size: tuple[int, int]) -> Tensor:
    """Images (1000003, channels, H, W) float32 without memory behind them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(STAND_IN, channels, *image_size)


def is_computed_with(graph: ir.Graph) -> bool:
    """Whether a constant or an attribute of the graph holds a multiple of the stand-in: it would fix the batch."""
    constants = (value.const_value for value in graph.initializers.values())
    if any(tensor is not None and _holds(tensor) for tensor in constants):
        return True
    attributes = (each for node in ir.traversal.RecursiveGraphIterator(graph) for each in node.attributes.values())
    return any(_holds(each.value) for each in attributes if each.type in _NUMBERS)


def replace_by_batch(graph: ir.Graph) -> None:
    """Put the symbol in place of the stand-in in the shapes of all values."""
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    for value in (*graph.inputs, *(output for node in nodes for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_dimension(size) for size in value.shape])


def _holds(number: object) -> bool:
    if isinstance(number, ir.TensorProtocol):
        if number.size > 1 and number.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            return False  # weights: only a single number may be the batch as a divisor, for instance
        number = number.numpy()
    array = np.asarray(number)
    return bool(((array != 0) & (array % STAND_IN == 0)).any())


def _dimension(size: int | ir.SymbolicDim) -> int | str | ir.SymbolicDim:
    if not isinstance(size, int) or size == 0 or size % STAND_IN:
        return size
    times = size // STAND_IN
    return BATCH if times == 1 else f"{times}*{BATCH}"

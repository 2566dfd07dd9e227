# SPDX-License-Identifier: Apache-2.0
"""What an engine takes and gives, and contexts that run it at one batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import EngineError
from .batches import DYNAMIC
from .hints import advised
from .listening import Messages

if TYPE_CHECKING:
    import tensorrt as trt

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; sizes that follow from the batch are -1, of an input the first one only."""

    name: str
    shape: Shape
    dtype: torch.dtype

    def at(self, batch: int) -> Shape:
        """The shape of an input for a batch."""
        return tuple(batch if size == DYNAMIC else size for size in self.shape)


def tensors_of(engine: trt.ICudaEngine, outputs: Sequence[str] = ()) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs.

    Args:
        outputs: names in the order that the outputs are to have; empty for TensorRT's, which may be another than the
            graph's.

    Raises:
        EngineError: these are not the engine's outputs.
    """
    import tensorrt as trt

    tensors = [_tensor(engine, engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
    inputs = tuple(each for each in tensors if engine.get_tensor_mode(each.name) == trt.TensorIOMode.INPUT)
    found = {each.name: each for each in tensors if each not in inputs}
    if outputs and (set(outputs) != set(found) or len(outputs) != len(found)):
        raise EngineError(
            f"the engine gives {', '.join(found)}, and the graph {', '.join(outputs)}: it is of another graph. "
            "Build it again: metaformer-export build DIR"
        )
    return inputs, tuple(found[name] for name in outputs or found)


def _tensor(engine: trt.ICudaEngine, name: str) -> Tensor:
    import tensorrt as trt

    dtypes = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT64: torch.int64,
        trt.DataType.INT32: torch.int32,
    }
    shape = tuple(int(size) for size in engine.get_tensor_shape(name))
    return Tensor(name, shape, dtypes[engine.get_tensor_dtype(name)])


def batches_of(engine: trt.ICudaEngine, inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Smallest and largest batch of the engine's profile."""
    first = inputs[0]
    if first.shape[0] != DYNAMIC:
        return first.shape[0], first.shape[0]
    smallest, _, largest = engine.get_tensor_profile_shape(first.name, 0)
    return int(smallest[0]), int(largest[0])


def context_of(engine: trt.ICudaEngine, messages: Messages) -> trt.IExecutionContext:
    """A context of its own; EngineError if TensorRT gives none, as without memory for it."""
    context: trt.IExecutionContext | None = engine.create_execution_context()
    if context is None:
        raise EngineError(f"TensorRT gives the engine no context: {advised(messages.errors)}")
    return context


def set_batch(context: trt.IExecutionContext, inputs: Sequence[Tensor], batch: int, messages: Messages) -> None:
    """Give a context's inputs the sizes of a batch; EngineError if they are outside the engine's profile."""
    for each in inputs:
        if not context.set_input_shape(each.name, each.at(batch)):
            raise EngineError(
                f"TensorRT does not take input {each.name} as {each.at(batch)}: {advised(messages.errors)}"
            )


def output_shapes(context: trt.IExecutionContext, outputs: Sequence[Tensor]) -> dict[str, Shape]:
    """Sizes of the outputs, by name, of a context whose inputs have theirs.

    A dynamic size of an output is any function of the batch (56 times it, for one), which TensorRT alone knows.

    Raises:
        EngineError: a size depends on the values of the inputs, so that no memory can be set aside for it.
    """
    shapes = {each.name: tuple(int(size) for size in context.get_tensor_shape(each.name)) for each in outputs}
    for name, shape in shapes.items():
        if min(shape, default=0) < 0:
            raise EngineError(
                f"output {name} is {shape}: its size depends on what the model computes, which sessions do not "
                "support. Export the model without this output."
            )
    return shapes

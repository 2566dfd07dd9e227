# SPDX-License-Identifier: Apache-2.0
"""What an engine takes and gives, and contexts that run it at one batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from ...errors import EngineError, InputError
from ..batches import DYNAMIC
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


def batch_of(inputs: Sequence[Tensor], given: Mapping[str, NDArray[Any]] | Mapping[str, torch.Tensor]) -> int:
    """How many images are given, with a row for each in every input.

    Raises:
        InputError: an input is missing, none of the engine's, or of another size than (images, ...).
    """
    names = [each.name for each in inputs]
    if wrong := sorted(set(names).symmetric_difference(given)):
        how = "not given" if wrong[0] in names else "none of these"
        raise InputError(f"the engine takes {', '.join(names)}; {wrong[0]} is {how}.")
    first = tuple(given[names[0]].shape)
    images = first[0] if first else 0
    for each in inputs:
        shape = tuple(given[each.name].shape)
        if shape != (images, *each.shape[1:]):
            raise InputError(
                f"input {each.name} is {shape}; the engine takes "
                f"({', '.join(map(str, ('batch', *each.shape[1:])))}), with the same batch for every input."
            )
    return images


@contextmanager
def gpu_failures(work: str) -> Iterator[None]:
    """Turns what PyTorch raises for a GPU that is full or fails into an EngineError that names the work."""
    try:
        yield
    except RuntimeError as error:  # of which CUDA's errors and torch.OutOfMemoryError are kinds
        reason = _first_line(error)
        if "out of memory" in reason:
            raise EngineError(
                f"there is no memory left for {work}: {reason}. Give fewer images at once, or build with "
                "a lower largest batch of --batch MIN:OPT:MAX."
            ) from error
        raise EngineError(
            f"the GPU failed at {work}: {reason}. After most such failures it takes a new process to go on."
        ) from error


def _first_line(error: Exception) -> str:
    """What an error says, without the advice that follows and the full stop."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


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


def set_addresses(context: trt.IExecutionContext, tensors: Mapping[str, torch.Tensor], messages: Messages) -> None:
    """Give a context the memory of its inputs and outputs; EngineError if it does not take one's."""
    for name, tensor in tensors.items():
        if not context.set_tensor_address(name, tensor.data_ptr()):
            raise EngineError(f"TensorRT does not take the memory of {name}: {advised(messages.errors)}")


def recorded(
    context: trt.IExecutionContext, stream: torch.cuda.Stream, batch: int, messages: Messages
) -> torch.cuda.CUDAGraph:
    """A run of a context, which has its sizes and memory and has run before, in a stream that is the current one.

    Raises:
        EngineError: TensorRT does not run the engine while it is recorded, or the recording fails.
    """
    graph, runs = torch.cuda.CUDAGraph(), True
    cannot = f"a run of {batch} images cannot be recorded as a CUDA graph"
    way_out = "Leave out --cuda-graph."
    try:
        with torch.cuda.graph(graph, stream=stream):
            # Nothing may be raised in here: the end of a recording that failed raises as well, and would hide it.
            runs = context.execute_async_v3(stream.cuda_stream)
    except RuntimeError as error:
        reason = advised(messages.errors) if messages.errors else f"{_first_line(error)}."
        raise EngineError(f"{cannot}: {reason} {way_out}") from error
    if not runs:
        raise EngineError(f"{cannot}: {advised(messages.errors)} {way_out}")
    return graph


def set_weight_budget(engine: trt.ICudaEngine, messages: Messages) -> None:
    """Let as many weights as TensorRT finds room for stay on the GPU; EngineError if more of them do.

    The setter answers whether it worked, which Python's property drops; with streaming off, the budget reads as the
    size of all weights that could be streamed.
    """
    budget = engine.get_weight_streaming_automatic_budget()
    engine.weight_streaming_budget_v2 = budget
    if engine.weight_streaming_budget_v2 > budget:
        raise EngineError(
            f"TensorRT does not stream the weights within {budget} bytes but keeps "
            f"{engine.weight_streaming_budget_v2} on the GPU: {advised(messages.errors)}"
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

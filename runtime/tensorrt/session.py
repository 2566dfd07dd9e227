# SPDX-License-Identifier: Apache-2.0
"""A loaded engine: what the other targets give, and PyTorch tensors on the GPU as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import EngineError, InputError
from ..batches import batch_axis, joined, parts_of, rows_of
from .contexts import (
    Shape,
    Tensor,
    batch_of,
    batches_of,
    context_of,
    gpu_failures,
    output_shapes,
    recorded,
    set_addresses,
    set_batch,
    set_weight_budget,
    tensors_of,
)
from .hints import advised
from .listening import Messages, load_plugins, logger_to, recorder_to

if TYPE_CHECKING:
    import tensorrt as trt

_WARM_UP_RUNS = 2
"""Before a run is recorded: the first at a size may still allocate, which a recording must not."""


@dataclass
class _Buffers:
    """Memory for one batch size, what runs in it, and the recorded run."""

    batch: int
    context: trt.IExecutionContext
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    staging: dict[str, torch.Tensor]
    graph: torch.cuda.CUDAGraph | None = None


@dataclass
class Session:
    """An engine with its contexts, stream and buffers; one call at a time.

    Call it with a batch (B, C, H, W) in NumPy, and with clusterings by name where it takes any, to get float32 arrays
    in the order of `outputs`. B may be any number: what the engine does not take at once is cut into parts, and filled
    up with the last image. `run` takes and gives tensors on the GPU at the engine's own batches, and waits for nothing.

    Attributes:
        context: which all batch sizes share; None where each has one of its own. They do with recorded runs, which hold
            on to memory of the context, and with ahead-of-time plugins, whose memory TensorRT 11.1 and 11.2 leak when
            the shapes of a context change (TensorRT issue 4849).
        batch: the smallest and the largest that the engine is for.
        stream: in which everything runs.
        cuda_graph: a run at each batch size is recorded and replayed.
        kept: what TensorRT needs alive and keeps no reference to.
    """

    engine: trt.ICudaEngine
    context: trt.IExecutionContext | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: tuple[int, int]
    messages: Messages
    stream: torch.cuda.Stream
    cuda_graph: bool = False
    at_once: int = 1
    _buffers: dict[int, _Buffers] = field(default_factory=dict)
    kept: tuple[Any, ...] = ()

    def __call__(
        self, batch: NDArray[np.floating], given: Mapping[str, NDArray[np.int64]] | None = None
    ) -> list[NDArray[np.float32]]:
        images = next(each for each in self.inputs if each.dtype.is_floating_point)
        arrays: dict[str, NDArray[Any]] = {images.name: batch, **(given or {})}
        images_given = batch_of(self.inputs, arrays)
        parts = parts_of(images_given, *self.batch)
        if len(parts) == 1 and parts[0].size == images_given:
            return self._computed(arrays, images_given)
        axes = [batch_axis(each.name, each.shape, images.shape[0]) for each in self.outputs]
        pieces = [
            self._computed({name: rows_of(array, part) for name, array in arrays.items()}, part.size) for part in parts
        ]
        return [
            joined(each.name, own, parts, axis)
            for each, own, axis in zip(self.outputs, zip(*pieces, strict=True), axes, strict=True)
        ]

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs by name, on the GPU, valid until the next call; the caller's current stream goes on after them.

        Raises:
            InputError: an input is missing, not on the GPU, or of another type or size than the engine's.
            EngineError: the GPU is full or fails, or TensorRT does not run the engine.
        """
        count = self._checked(inputs)
        with gpu_failures(f"a batch of {count}"), self._after_the_caller():
            buffers = self._buffers_for(count)
            for name, tensor in inputs.items():
                buffers.inputs[name].copy_(tensor, non_blocking=True)
            self._enqueue(buffers)
        torch.cuda.current_stream().wait_stream(self.stream)
        return buffers.outputs

    def gpu_milliseconds(self, batch: int, runs: int) -> list[float]:
        """Time of each of so many runs by CUDA events, without copies from or to the host.

        The runs are queued one behind the other: waiting for each would put the host's work into every time.
        """
        events = [(_event(), _event()) for _ in range(runs)]
        with gpu_failures(f"a batch of {batch}"):
            with self._after_the_caller():
                buffers = self._buffers_for(batch)
                self._enqueue(buffers)
                for begin, end in events:
                    begin.record()
                    self._enqueue(buffers)
                    end.record()
            self.stream.synchronize()
        return [float(begin.elapsed_time(end)) for begin, end in events]

    def shaped_context(self, batch: int) -> trt.IExecutionContext:
        """A new context whose inputs have the sizes of a batch, by which the engine inspector tells its types.

        Raises:
            EngineError: the batch is outside the engine's, or there is no memory for a context.
        """
        context = context_of(self.engine, self.messages)
        set_batch(context, self.inputs, batch, self.messages)
        return context

    def release(self) -> None:
        """Give back the buffers of all batch sizes, and the contexts that are theirs alone."""
        with gpu_failures("the end of earlier runs"):
            self.stream.synchronize()
        self._buffers.clear()
        torch.cuda.empty_cache()

    def _computed(self, arrays: Mapping[str, NDArray[Any]], batch: int) -> list[NDArray[np.float32]]:
        """Outputs for arrays that are a batch of the engine's."""
        with gpu_failures(f"a batch of {batch}"):
            with self._after_the_caller():
                buffers = self._buffers_for(batch)
                for name, array in arrays.items():
                    staging = buffers.staging[name]
                    staging.copy_(torch.from_numpy(np.ascontiguousarray(array)))
                    buffers.inputs[name].copy_(staging, non_blocking=True)
                self._enqueue(buffers)
                for each in self.outputs:
                    buffers.staging[each.name].copy_(buffers.outputs[each.name], non_blocking=True)
            self.stream.synchronize()
        return [buffers.staging[each.name].float().numpy().copy() for each in self.outputs]

    @contextmanager
    def _after_the_caller(self) -> Iterator[None]:
        """What is queued or allocated here comes after what the caller has queued.

        That may still read the outputs of an earlier run, or memory that the allocator hands out again.
        """
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield

    def _checked(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """The batch."""
        count = batch_of(self.inputs, inputs)
        for each in self.inputs:
            tensor = inputs[each.name]
            if tensor.device.type != "cuda" or tensor.dtype != each.dtype:
                raise InputError(
                    f"input {each.name} is {_described(tensor)}; the engine takes {each.dtype} "
                    f"(batch, {', '.join(map(str, each.shape[1:]))}) on the GPU."
                )
        return count

    def _buffers_for(self, batch: int) -> _Buffers:
        smallest, largest = self.batch
        if not smallest <= batch <= largest:
            raise InputError(
                f"the engine is built for batches of {smallest} to {largest}; got {batch}. "
                "Build it with another --batch MIN:OPT:MAX."
            )
        if batch not in self._buffers:
            self._buffers[batch] = self._allocated(batch)
        return self._buffers[batch]

    def _allocated(self, batch: int) -> _Buffers:
        context = self.context if self.context is not None else context_of(self.engine, self.messages)
        set_batch(context, self.inputs, batch, self.messages)
        shapes = output_shapes(context, self.outputs)
        inputs = {each.name: _on_gpu(each.at(batch), each.dtype) for each in self.inputs}
        outputs = {each.name: _on_gpu(shapes[each.name], each.dtype) for each in self.outputs}
        pinned = {name: torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for name, x in (inputs | outputs).items()}
        buffers = _Buffers(batch, context, inputs, outputs, pinned)
        set_addresses(context, inputs | outputs, self.messages)
        if self.cuda_graph:
            buffers.graph = self._recorded(buffers)
        return buffers

    def _recorded(self, buffers: _Buffers) -> torch.cuda.CUDAGraph:
        for _ in range(_WARM_UP_RUNS):
            self._enqueue(buffers)
        self.stream.synchronize()
        return recorded(buffers.context, self.stream, buffers.batch, self.messages)

    def _enqueue(self, buffers: _Buffers) -> None:
        """Put one run into the session's stream."""
        if buffers.graph is not None:
            buffers.graph.replay()
            return
        if buffers.context is self.context:  # the last run may have been of another batch size
            set_batch(buffers.context, self.inputs, buffers.batch, self.messages)
            set_addresses(buffers.context, buffers.inputs | buffers.outputs, self.messages)
        if not buffers.context.execute_async_v3(self.stream.cuda_stream):
            raise EngineError(f"TensorRT did not run the engine: {advised(self.messages.errors)}")


def session_of(
    plan: bytes,
    *,
    host_code: bool = False,
    cuda_graph: bool = False,
    separate: bool = False,
    weight_streaming: bool = False,
    outputs: Sequence[str] = (),
    refit: Callable[[trt.ICudaEngine], None] | None = None,
) -> Session:
    """Load an engine.

    Args:
        host_code: the engine was built version-compatible, and brings code of its own that has to be allowed.
        cuda_graph: record a run at each batch size and replay it.
        separate: give every batch size a context of its own, as ahead-of-time plugins want it.
        weight_streaming: the engine was built for it; as many weights as TensorRT finds room for stay on the GPU.
            Without a budget all of them would.
        outputs: names of the graph's outputs, in the order that the session is to give them; empty for TensorRT's.
        refit: puts weights into an engine that has none.

    Raises:
        EngineError: TensorRT does not load it, or its outputs are others; says reasons and what to do about known ones.
    """
    import tensorrt as trt

    messages = Messages()
    logger, recorder = logger_to(messages), recorder_to(messages)
    load_plugins(messages)
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:  # the bindings' word for no runtime, without a GPU or a driver
        raise EngineError(f"TensorRT gives no runtime here: {advised(messages.errors)}") from error
    runtime.error_recorder = recorder
    runtime.engine_host_code_allowed = host_code
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT does not load the engine: {advised(messages.errors)}")
    if refit is not None:
        refit(engine)
    if weight_streaming:  # before there is a context: an engine with one takes no other budget
        set_weight_budget(engine, messages)
    taken, made = tensors_of(engine, outputs)
    context = None if separate or cuda_graph else context_of(engine, messages)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    kept = (logger, recorder, runtime)
    return Session(engine, context, taken, made, batches_of(engine, taken), messages, stream, cuda_graph, kept=kept)


def _on_gpu(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _described(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}"

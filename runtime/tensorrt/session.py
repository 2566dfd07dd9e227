# SPDX-License-Identifier: Apache-2.0
"""A loaded engine: what the other targets give, and PyTorch tensors on the GPU as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import EngineError, InputError
from .hints import advised
from .listening import Messages, logger_to, recorder_to

if TYPE_CHECKING:
    import tensorrt as trt

_WARM_UP_RUNS = 2
"""Before a run is recorded: the first at a size may still allocate, which a recording must not."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; the first size is -1 where it is the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class _Buffers:
    """Memory for one batch size, what runs in it, and the recorded run."""

    context: trt.IExecutionContext
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    staging: dict[str, torch.Tensor]
    graph: torch.cuda.CUDAGraph | None = None


@dataclass
class Session:
    """An engine with its context, stream and buffers; one call at a time.

    Call it with a batch (B, C, H, W) in NumPy, and with clusterings by name where it takes any, to get float32 arrays
    in the order of the graph's outputs; `run` takes and gives tensors on the GPU and waits for nothing.

    Attributes:
        batch: the smallest and the largest that the engine is for.
        kept: what TensorRT needs alive and keeps no reference to.
        separate: every batch size has a context of its own. TensorRT 11.1 and 11.2 leak memory of ahead-of-time plugins
            when the shapes of a context change (TensorRT issue 4849).
        cuda_graph: a run at each batch size is recorded and replayed.
    """

    engine: trt.ICudaEngine
    context: trt.IExecutionContext
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: tuple[int, int]
    messages: Messages
    kept: tuple[Any, ...] = ()
    separate: bool = False
    cuda_graph: bool = False
    at_once: int = 1
    _stream: torch.cuda.Stream = field(default_factory=torch.cuda.Stream)
    _buffers: dict[int, _Buffers] = field(default_factory=dict)

    def __call__(
        self, batch: NDArray[np.floating], given: Mapping[str, NDArray[np.int64]] | None = None
    ) -> list[NDArray[np.float32]]:
        images = next(each for each in self.inputs if each.dtype.is_floating_point)
        arrays: dict[str, NDArray[Any]] = {images.name: batch, **(given or {})}
        buffers = self._buffers_for(len(batch))
        with torch.cuda.stream(self._stream):
            for name, array in arrays.items():
                staging = buffers.staging[name]
                staging.copy_(torch.from_numpy(np.ascontiguousarray(array)))
                buffers.inputs[name].copy_(staging, non_blocking=True)
            self._enqueue(buffers)
            for each in self.outputs:
                buffers.staging[each.name].copy_(buffers.outputs[each.name], non_blocking=True)
        self._stream.synchronize()
        return [buffers.staging[each.name].float().numpy().copy() for each in self.outputs]

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs by name, on the GPU, valid until the next call; the caller's current stream goes on after them.

        Raises:
            InputError: an input is missing, not on the GPU, or of another type or size than the engine's.
        """
        count = self._checked(inputs)
        buffers = self._buffers_for(count)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, tensor in inputs.items():
                buffers.inputs[name].copy_(tensor, non_blocking=True)
            self._enqueue(buffers)
        torch.cuda.current_stream().wait_stream(self._stream)
        return buffers.outputs

    def gpu_milliseconds(self, batch: int, runs: int) -> list[float]:
        """Time of each of so many runs by CUDA events, without copies from or to the host."""
        buffers = self._buffers_for(batch)
        times = []
        with torch.cuda.stream(self._stream):
            self._enqueue(buffers)
            for _ in range(runs):
                begin, end = _event(), _event()
                begin.record()
                self._enqueue(buffers)
                end.record()
                end.synchronize()
                times.append(float(begin.elapsed_time(end)))
        return times

    def release(self) -> None:
        """Give back the buffers of all batch sizes."""
        self._stream.synchronize()
        self._buffers.clear()
        torch.cuda.empty_cache()

    def _checked(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """The batch."""
        for each in self.inputs:
            tensor = inputs.get(each.name)
            if tensor is None:
                raise InputError(
                    f"the engine takes {', '.join(each.name for each in self.inputs)}; {each.name} is not given."
                )
            if tensor.device.type != "cuda" or tensor.dtype != each.dtype or tuple(tensor.shape[1:]) != each.shape[1:]:
                raise InputError(
                    f"input {each.name} is {_described(tensor)}; the engine takes {each.dtype} "
                    f"(batch, {', '.join(map(str, each.shape[1:]))}) on the GPU."
                )
        return int(inputs[self.inputs[0].name].shape[0])

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
        inputs, outputs = ({t.name: _on_gpu(t, batch) for t in each} for each in (self.inputs, self.outputs))
        pinned = {name: torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for name, x in (inputs | outputs).items()}
        context = _context(self.engine, self.messages) if self.separate and self._buffers else self.context
        buffers = _Buffers(context, inputs, outputs, pinned)
        if self.cuda_graph:
            buffers.graph = self._recorded(buffers)
        return buffers

    def _recorded(self, buffers: _Buffers) -> torch.cuda.CUDAGraph:
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):
                self._enqueue(buffers)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._enqueue(buffers)
        return graph

    def _enqueue(self, buffers: _Buffers) -> None:
        """Put one run into the current stream."""
        if buffers.graph is not None:
            buffers.graph.replay()
            return
        for name, tensor in buffers.inputs.items():
            buffers.context.set_input_shape(name, tuple(tensor.shape))
        for name, tensor in (buffers.inputs | buffers.outputs).items():
            buffers.context.set_tensor_address(name, tensor.data_ptr())
        if not buffers.context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError(f"TensorRT did not run the engine: {advised(self.messages.errors)}")


def session_of(
    plan: bytes,
    *,
    host_code: bool = False,
    cuda_graph: bool = False,
    separate: bool = False,
    refit: Callable[[trt.ICudaEngine], None] | None = None,
) -> Session:
    """Load an engine.

    Args:
        host_code: the engine was built version-compatible, and brings code of its own that has to be allowed.
        cuda_graph: record a run at each batch size and replay it.
        separate: give every batch size a context of its own, as ahead-of-time plugins want it.
        refit: puts weights into an engine that has none.

    Raises:
        EngineError: TensorRT does not load it; says its reasons and what to do about known ones.
    """
    import tensorrt as trt

    messages = Messages()
    logger, recorder = logger_to(messages), recorder_to(messages)
    trt.init_libnvinfer_plugins(logger, "")
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
    context = _context(engine, messages)
    tensors = [_tensor(engine, engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
    modes = {each.name: engine.get_tensor_mode(each.name) for each in tensors}
    inputs = tuple(each for each in tensors if modes[each.name] == trt.TensorIOMode.INPUT)
    outputs = tuple(each for each in tensors if modes[each.name] == trt.TensorIOMode.OUTPUT)
    kept = (logger, recorder, runtime)
    return Session(engine, context, inputs, outputs, _batches(engine, inputs), messages, kept, separate, cuda_graph)


def _context(engine: trt.ICudaEngine, messages: Messages) -> trt.IExecutionContext:
    context: trt.IExecutionContext | None = engine.create_execution_context()
    if context is None:
        raise EngineError(f"TensorRT gives the engine no context: {advised(messages.errors)}")
    return context


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


def _batches(engine: trt.ICudaEngine, inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Smallest and largest batch of the engine's profile."""
    first = inputs[0]
    if first.shape[0] != -1:
        return first.shape[0], first.shape[0]
    smallest, _, largest = engine.get_tensor_profile_shape(first.name, 0)
    return int(smallest[0]), int(largest[0])


def _on_gpu(tensor: Tensor, batch: int) -> torch.Tensor:
    first = batch if tensor.shape[0] == -1 else tensor.shape[0]
    return torch.empty((first, *tensor.shape[1:]), dtype=tensor.dtype, device="cuda")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _described(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}"

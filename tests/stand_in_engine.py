# SPDX-License-Identifier: Apache-2.0
"""Stands for TensorRT's closed part and for CUDA, so that sessions run on a CPU.

The engine computes with NumPy at the addresses that it is given, as TensorRT does on the GPU, and refuses memory of
another size than it is going to write. CUDA's streams and events do nothing but note what was asked of them, in order.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT64 INT32")
TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
_NUMPY = {DataType.FLOAT: np.float32, DataType.INT64: np.int64}
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class IO:
    """An input or output: its shape as the engine says it, -1 where it is dynamic."""

    shape: tuple[int, ...]
    dtype: DataType = DataType.FLOAT


@dataclass(frozen=True)
class Network:
    """What the engine computes, in TensorRT's order, and its profile.

    Attributes:
        compute: outputs by name, of inputs by name.
    """

    inputs: Mapping[str, IO]
    outputs: Mapping[str, IO]
    batch: tuple[int, int]
    compute: Callable[[Arrays], Arrays]


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU: `tensor.as_subclass(OnGpu)`."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


@dataclass
class Gpu:
    """CUDA's part, and everything that happened, in order.

    Attributes:
        room: so many tensors can still be allocated on it; None for any number.
        failure: what waiting for a stream raises.
        invalidated: what is being recorded cannot be.
    """

    happened: list[str] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    recording: Recording | None = None
    runs: int = 0
    room: int | None = None
    failure: str = ""
    invalidated: bool = False

    def empty(self, shape: Any, dtype: torch.dtype, device: str = "", pin_memory: bool = False) -> torch.Tensor:
        assert (device == "cuda") != pin_memory
        if device and self.room is not None:
            if not self.room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation.")
            self.room -= 1
        memory = torch.full(tuple(shape), 77, dtype=dtype)  # what earlier users left behind
        if device:
            self.happened.append("allocate")
            self.sizes[memory.data_ptr()] = memory.nbytes
        return memory

    def run(self, work: Callable[[], None], context: Context) -> None:
        if self.recording is not None:
            self.recording.contexts.append(context)
            self.recording.work.append(work)
            return
        self.happened.append("run")
        self.runs += 1
        work()


@dataclass
class Recording:
    """A CUDA graph."""

    gpu: Gpu
    work: list[Callable[[], None]] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)

    def replay(self) -> None:
        self.gpu.happened.append("replay")
        self.gpu.runs += len(self.work)
        for each in self.work:
            each()


@dataclass
class Stream:
    gpu: Gpu
    name: str
    cuda_stream: int = 7

    def wait_stream(self, other: Stream) -> None:
        self.gpu.happened.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.gpu.happened.append("synchronise")
        if self.gpu.failure:
            raise RuntimeError(self.gpu.failure)


@dataclass
class Event:
    """Its time is the number of runs before it."""

    gpu: Gpu
    at: int = -1

    def record(self) -> None:
        self.gpu.happened.append("record")
        self.at = self.gpu.runs

    def elapsed_time(self, end: Event) -> float:
        assert self.gpu.happened[-1] == "synchronise"
        return float(end.at - self.at)


@dataclass
class Context:
    engine: Engine
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.engine.gpu.recording is None
        declared, (smallest, largest) = self.engine.network.inputs[name].shape, self.engine.network.batch
        self.shapes[name] = shape
        return shape == declared or (shape[1:] == declared[1:] and smallest <= shape[0] <= largest)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        network = self.engine.network
        arrays = {
            each: np.zeros(self.shapes.get(each, io.shape), _NUMPY[io.dtype]) for each, io in network.inputs.items()
        }
        shape = network.compute(arrays)[name].shape
        return (-1,) if name == "found" else shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert self.engine.gpu.recording is None
        self.addresses[name] = memory
        return not self.engine.refuses_memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == Stream.cuda_stream
        if self.engine.refuses_recording and self.engine.gpu.recording is not None:
            self.engine.gpu.invalidated = self.engine.refuses_recording == "invalidated"
            return False
        shapes, addresses, network = dict(self.shapes), dict(self.addresses), self.engine.network

        def work() -> None:
            given = {name: self._memory(addresses[name], shapes[name], io.dtype) for name, io in network.inputs.items()}
            for name, made in network.compute(given).items():
                self._memory(addresses[name], made.shape, network.outputs[name].dtype)[...] = made

        self.engine.gpu.run(work, self)
        return True

    def _memory(self, address: int, shape: tuple[int, ...], dtype: DataType) -> NDArray[Any]:
        kind = np.dtype(_NUMPY[dtype])
        size = kind.itemsize * int(np.prod(shape))
        assert self.engine.gpu.sizes[address] == size, "out of bounds"
        return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)


@dataclass
class Engine:
    """What it refuses: the memory of a tensor, a budget of weights, and to run while it is recorded, with
    "invalidated" so that the recording cannot be ended either.
    """

    network: Network
    gpu: Gpu
    contexts: list[Context] = field(default_factory=list)
    automatic: int = 4096
    budgets: list[tuple[int, int]] = field(default_factory=list)
    weight_streaming_budget_v2: int = 65536
    refuses_budget: bool = False
    refuses_memory: bool = False
    refuses_recording: str = ""

    def __post_init__(self) -> None:
        self.budgets.clear()  # of the one that it begins with

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def _tensors(self) -> dict[str, IO]:
        return {**self.network.inputs, **self.network.outputs}

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.network.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name].dtype

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        smallest, largest = self.network.batch
        return [(size, *self._tensors[name].shape[1:]) for size in (smallest, smallest, largest)]

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.automatic

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight_streaming_budget_v2":
            self.budgets.append((value, len(self.contexts)))  # type: ignore[arg-type]
            if self.refuses_budget:
                return
        object.__setattr__(self, name, value)


@dataclass
class TensorRT:
    """The module and CUDA, put in place.

    Attributes:
        plugin_loggers: given to the plugin library, which keeps the last.
        runtime_loggers: given to runtimes.
        engine: that a session has loaded.
        current: the stream that is current.
    """

    gpu: Gpu
    network: Network
    engine: Engine
    plugin_loggers: list[Any] = field(default_factory=list)
    runtime_loggers: list[Any] = field(default_factory=list)
    current: list[Stream] = field(default_factory=list)


def put_in_place(network: Network, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    """Let `tensorrt` and `torch.cuda` be the stand-ins."""
    gpu = Gpu()
    made = TensorRT(gpu, network, Engine(network, gpu))
    logger = type("ILogger", (), {"Severity": enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")})
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: made.engine)

    def runtime_of(given: Any) -> SimpleNamespace:
        made.runtime_loggers.append(given)
        return runtime

    module = SimpleNamespace(
        ILogger=logger,
        IErrorRecorder=type("IErrorRecorder", (), {}),
        DataType=DataType,
        TensorIOMode=TensorIOMode,
        Runtime=runtime_of,
        init_libnvinfer_plugins=lambda given, namespace: made.plugin_loggers.append(given),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    made.current.append(Stream(gpu, "caller"))

    @contextmanager
    def stream(entered: Stream) -> Iterator[None]:
        before, made.current[0] = made.current[0], entered
        try:
            yield
        finally:
            made.current[0] = before

    @contextmanager
    def graph(recording: Recording, stream: Stream) -> Iterator[None]:
        assert made.current[0] is stream
        gpu.recording = recording
        try:
            yield
        finally:
            gpu.recording = None
            if gpu.invalidated:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nAdvice.")

    for name, stand_in in {
        "Stream": lambda: Stream(gpu, "session"),
        "current_stream": lambda: made.current[0],
        "stream": stream,
        "Event": lambda enable_timing: Event(gpu),
        "CUDAGraph": lambda: Recording(gpu),
        "graph": graph,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "empty", gpu.empty)
    return made

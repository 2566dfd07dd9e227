# SPDX-License-Identifier: Apache-2.0
"""An ONNX file -> an engine: strongly typed, so that the file alone says in which precision it computes.

The configuration and the build are Polygraphy's. The network is parsed here, because Polygraphy's own loader takes
neither a logger nor the flag that prefers plugins compiled ahead of time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import EngineError, InputError, MetaformerExportError
from ..batches import DYNAMIC
from .cancelling import cancellable
from .environment import AHEAD_OF_TIME, Environment, environment, named
from .hints import advised
from .listening import Messages, Phases, load_plugins, logger_to, monitor_of, recorder_to
from .options import EngineOptions
from .plugins import kernel_architecture, register_plugins
from .timing_cache import load_into, place_of, save_from

if TYPE_CHECKING:
    import tensorrt as trt

MIB = 2**20
Batch = tuple[int, int, int]
"""Smallest, usual and largest."""
_BUILDING = threading.Lock()
"""Builds time kernels against each other, and plugins are compiled for one GPU at a time."""


def _untold(phase: str, step: int, steps: int) -> None:
    del phase, step, steps


@dataclass(frozen=True)
class Built:
    """An engine as it came from the builder.

    Attributes:
        plan: the serialised engine.
        warnings: what the builder said, each once.
        notes: what the user should know beside that.
    """

    plan: bytes
    seconds: float
    environment: Environment
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Work:
    """What one build needs to outlive it: TensorRT keeps no references to what it is given."""

    environment: Environment
    messages: Messages = field(default_factory=Messages)
    config: trt.IBuilderConfig | None = None
    kept: list[Any] = field(default_factory=list)


def build(
    source: Path,
    options: EngineOptions,
    batch: Batch,
    *,
    plugins: Sequence[str] = (),
    told: Callable[[str, int, int], None] = _untold,
) -> Built:
    """Build an engine from an .onnx file, whose weights may lie beside it; one after the other in a process.

    Args:
        batch: for which the engine is built; every input's first size, where it is dynamic.
        plugins: mixer ops of the file that are to run as plugins.
        told: of the builder's phases, their steps so far and all of them.

    Raises:
        InputError: no plugin can be compiled for this GPU.
        MissingDependencyError: TensorRT or a GPU is not there, or too old for an option, or Triton is not for plugins.
        EngineError: TensorRT refuses the file or finds no engine; says its reasons and what to do about known ones.
        KeyboardInterrupt: the build was interrupted; nothing is left behind.
    """
    found = environment()
    work, phases = _Work(found), Phases(told)
    with _BUILDING:
        register_plugins(plugins, kernel_architecture(options, found.architecture))
        started = time.perf_counter()
        # A thread begins with the first GPU, whichever is this one's.
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        plan = cancellable(partial(_plan_on, device, source, options, batch, work, phases), phases.cancel)
        seconds = time.perf_counter() - started
    return Built(plan, seconds, found, tuple(work.messages.warnings), tuple(work.messages.notes))


def _plan_on(
    device: int | None, source: Path, options: EngineOptions, batch: Batch, work: _Work, phases: Phases
) -> bytes:
    with nullcontext() if device is None else torch.cuda.device(device):
        return _plan(source, options, batch, work, phases)


def _plan(source: Path, options: EngineOptions, batch: Batch, work: _Work, phases: Phases) -> bytes:
    from polygraphy.backend.trt import engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    builder, network, parser = parsed(source, work.messages, work.environment.version)
    builder.error_recorder = recorder = recorder_to(work.messages)
    work.kept += [recorder, parser]
    configured = configuration(options, profile_of(network, batch), monitor_of(phases), work)
    try:
        plan = engine_bytes_from_network((builder, network, parser), config=configured)
    except PolygraphyException as error:
        if phases.cancelled:
            raise KeyboardInterrupt from error
        raise EngineError(f"TensorRT built no engine from {source.name}: {advised(work.messages.errors)}") from error
    _save_timings(options, work)
    return bytes(plan)


def _save_timings(options: EngineOptions, work: _Work) -> None:
    """Keep what the build has measured; an engine is not lost over its timing cache, whatever goes wrong with that."""
    try:
        path = _cache_path(options, work)
        if work.config is not None and path is not None:
            save_from(work.config, path)
    except (MetaformerExportError, OSError, RuntimeError, TypeError, ValueError) as error:
        work.messages.notes.append(f"what the build has measured is not kept: {error}")


def parsed(
    source: Path, messages: Messages, version: tuple[int, ...]
) -> tuple[trt.Builder, trt.INetworkDefinition, trt.OnnxParser]:
    """A builder, the file's network, and the parser, which the network needs alive.

    Raises:
        EngineError: the parser refuses the file; names nodes and reasons.
    """
    import tensorrt as trt

    logger = logger_to(messages)
    load_plugins(messages)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the bindings' word for no builder, without a GPU or a driver
        raise EngineError(f"TensorRT gives no builder here: {advised(messages.errors)}") from error
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    if version >= AHEAD_OF_TIME:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
    network = builder.create_network(flags=flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        reasons = [_reason(parser.get_error(index)) for index in range(parser.num_errors)]
        raise EngineError(f"TensorRT's parser refuses {source.name}: {advised(reasons or messages.errors)}")
    return builder, network, parser


def _reason(error: trt.ParserError) -> str:
    """Which node, and why; inside a function, the node that calls it comes first."""
    calls: list[str] = list(error.local_function_stack())
    name = calls[0] if calls else error.node_name()
    return f"{error.node_operator()} {name}: {error.desc()}" if name else str(error.desc())


def profile_of(network: trt.INetworkDefinition, batch: Batch) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Smallest, usual and largest size of every input of a network.

    Raises:
        InputError: another size than the first is dynamic.
    """
    sizes = {}
    for index in range(network.num_inputs):
        tensor: trt.ITensor = network.get_input(index)
        shape = tuple(int(size) for size in tensor.shape)
        if DYNAMIC in shape[1:]:
            raise InputError(f"input {tensor.name} is {shape}; only its first size, the batch, may be dynamic.")
        first = batch if shape[0] == DYNAMIC else (shape[0],) * len(batch)
        sizes[str(tensor.name)] = tuple((number, *shape[1:]) for number in first)
    return sizes


def configuration(
    options: EngineOptions,
    sizes: dict[str, tuple[tuple[int, ...], ...]],
    monitor: trt.IProgressMonitor,
    work: _Work,
) -> Callable[[trt.Builder, trt.INetworkDefinition], trt.IBuilderConfig]:
    """Makes the builder's configuration when the build begins."""
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    _quiet_polygraphy()
    path = _cache_path(options, work)
    profile = Profile()
    for name, (smallest, usual, largest) in sizes.items():
        profile.add(name, min=smallest, opt=usual, max=largest)
    workspace = {} if options.workspace_mib is None else {trt.MemoryPoolType.WORKSPACE: options.workspace_mib * MIB}
    created = CreateConfig(
        profiles=[profile],
        tf32=options.tf32,
        memory_pool_limits=workspace,
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        builder_optimization_level=options.optimization_level,
        tiling_optimization_level=named(trt.TilingOptimizationLevel, options.tiling.upper()),
        hardware_compatibility_level=named(trt.HardwareCompatibilityLevel, options.hardware_compatible.upper()),
        version_compatible=options.version_compatible,
        strip_plan=options.strip_plan,
        refittable=options.refit,  # without weights, it takes the same ones back by itself, and layers stay fused
        weight_streaming=options.weight_streaming,
        progress_monitor=monitor,
    )

    def finish(builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
        del builder, network
        if options.max_tactics is not None:
            config.max_num_tactics = options.max_tactics
        if path is not None:
            cache, note = load_into(config, path)
            work.kept.append(cache)
            work.messages.notes += [note] if note else []
        work.config = config
        work.kept.append(monitor)

    return PostprocessConfig(created, finish)  # type: ignore[no-any-return]


def _cache_path(options: EngineOptions, work: _Work) -> Path | None:
    """The file of measurements, None where there can be none; says so once."""
    path, note = place_of(options.timing_cache, work.environment)
    if note and note not in work.messages.notes:
        work.messages.notes.append(note)
    return path


def _quiet_polygraphy() -> None:
    """Its messages go to Python's logging and, unless somebody listens there, no further."""
    from polygraphy.logger import G_LOGGER

    logging.getLogger("Polygraphy").addHandler(logging.NullHandler())
    G_LOGGER.use_python_logging_system = True

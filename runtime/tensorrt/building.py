# SPDX-License-Identifier: Apache-2.0
"""An ONNX file -> an engine: strongly typed, so that the file alone says in which precision it computes.

The configuration and the build are Polygraphy's. The network is parsed here, because Polygraphy's own loader takes
neither a logger nor the flag that prefers plugins compiled ahead of time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EngineError, InputError
from ...export.ops.catalog import find
from ...export.ops.registering import register
from .cancelling import cancellable
from .environment import AHEAD_OF_TIME, Environment, environment, named
from .hints import advised
from .listening import Messages, Phases, logger_to, monitor_of, recorder_to
from .options import EngineOptions
from .timing_cache import default_path, is_damaged, loadable, save_from

if TYPE_CHECKING:
    import tensorrt as trt

MIB = 2**20
Batch = tuple[int, int, int]
"""Smallest, usual and largest."""
_DYNAMIC = -1


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
    """Build an engine from an .onnx file, whose weights may lie beside it.

    Args:
        batch: for which the engine is built; every input's first size, where it is dynamic.
        plugins: mixer ops of the file that are to run as plugins.
        told: of the builder's phases, their steps so far and all of them.

    Raises:
        MissingDependencyError: TensorRT or a GPU is not there, or too old for an option.
        EngineError: TensorRT refuses the file or finds no engine; says its reasons and what to do about known ones.
        KeyboardInterrupt: the build was interrupted; nothing is left behind.
    """
    found = environment()
    for name in plugins:
        _register_once(name, found.architecture)
    work, phases = _Work(found), Phases(told)
    started = time.perf_counter()
    plan = cancellable(partial(_plan, source, options, batch, work, phases), phases.cancel)
    messages = work.messages
    return Built(plan, time.perf_counter() - started, found, tuple(messages.warnings), tuple(messages.notes))


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
    """Keep what the build has measured; an engine is not lost over a full disk."""
    path = _cache_path(options, work.environment)
    try:
        if work.config is not None:
            save_from(work.config, path)
    except OSError as error:
        work.messages.notes.append(f"the timing cache {path} could not be written: {error.strerror}.")


def parsed(
    source: Path, messages: Messages, version: tuple[int, ...]
) -> tuple[trt.Builder, trt.INetworkDefinition, trt.OnnxParser]:
    """A builder, the file's network, and the parser, which the network needs alive.

    Raises:
        EngineError: the parser refuses the file; names nodes and reasons.
    """
    import tensorrt as trt

    logger = logger_to(messages)
    trt.init_libnvinfer_plugins(logger, "")
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
        if _DYNAMIC in shape[1:]:
            raise InputError(f"input {tensor.name} is {shape}; only its first size, the batch, may be dynamic.")
        first = batch if shape[0] == _DYNAMIC else (shape[0],) * len(batch)
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
    path = _cache_path(options, work.environment)
    profile = Profile()
    for name, (smallest, usual, largest) in sizes.items():
        profile.add(name, min=smallest, opt=usual, max=largest)
    workspace = {} if options.workspace_mib is None else {trt.MemoryPoolType.WORKSPACE: options.workspace_mib * MIB}
    created = CreateConfig(
        profiles=[profile],
        tf32=options.tf32,
        load_timing_cache=loadable(path),
        memory_pool_limits=workspace,
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        builder_optimization_level=options.optimization_level,
        tiling_optimization_level=named(trt.TilingOptimizationLevel, options.tiling.upper()),
        hardware_compatibility_level=named(trt.HardwareCompatibilityLevel, options.hardware_compatible.upper()),
        version_compatible=options.version_compatible,
        strip_plan=options.strip_plan,
        refittable=options.refit or options.strip_plan,
        weight_streaming=options.weight_streaming,
        progress_monitor=monitor,
    )

    def finish(builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
        del builder, network
        if options.max_tactics is not None:
            config.max_num_tactics = options.max_tactics
        if is_damaged(config, path):
            work.messages.notes.append(f"the timing cache {path} is damaged or of another TensorRT; it is made again.")
        work.config = config
        work.kept.append(monitor)

    return PostprocessConfig(created, finish)  # type: ignore[no-any-return]


def _cache_path(options: EngineOptions, found: Environment) -> Path:
    return default_path(found) if options.timing_cache is None else Path(options.timing_cache)


@cache
def _register_once(name: str, architecture: int) -> None:
    """TensorRT's registry lives as long as the process, and takes a plugin once."""
    op = find(name)
    if op is None:
        raise InputError(f"no mixer op is called {name}.")
    register(op, architecture)


def _quiet_polygraphy() -> None:
    """Its messages go to Python's logging and, unless somebody listens there, no further."""
    from polygraphy.logger import G_LOGGER

    logging.getLogger("Polygraphy").addHandler(logging.NullHandler())
    G_LOGGER.use_python_logging_system = True

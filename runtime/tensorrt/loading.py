# SPDX-License-Identifier: Apache-2.0
"""An engine file -> a session, after a look at whether this machine can run it at all.

TensorRT's own answer to an engine of another version or GPU is a failed assertion; what an engine was built with
stands in the manifest beside it, never inside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EngineError, MissingDependencyError
from .environment import AHEAD_OF_TIME, Environment, environment, parse_version
from .hints import advised
from .listening import Messages, logger_to
from .options import EngineOptions
from .plugins import register_plugins
from .session import Session, session_of
from .told import Told, read_told

if TYPE_CHECKING:
    import tensorrt as trt

AMPERE = 80
_AGAIN = "build it again here: metaformer-export build DIR"


def load(
    path: Path, made: Mapping[str, Any] | None = None, outputs: Sequence[str] = (), *, sha256: str | None = None
) -> Session:
    """Load an engine file.

    Args:
        made: what the manifest says it was built with (its "tensorrt" entry); without, or where that is of another
            file, nothing is looked at.
        outputs: names, in the order in which they are wanted; empty leaves it to TensorRT.
        sha256: of the file that `made` is about, in hexadecimal; None takes any.

    Raises:
        MissingDependencyError: TensorRT or a GPU is not there, or what a plugin or the weights of the engine need.
        InputError: what the manifest says is damaged.
        EngineError: the file is missing, or the engine is of another version or GPU, or does not load.
    """
    found = environment()
    told = None if made is None else read_told(made)
    if told is not None and told.path != path.name:
        told = None  # it is of another engine
    if told is not None:
        if reason := mismatch(told, found):
            raise EngineError(f"{path} does not run here: {reason}")
        if told.plugins and parse_version(told.version) < AHEAD_OF_TIME:
            register_plugins(told.plugins, found.architecture)
    options = EngineOptions() if told is None else told.options
    source = path.with_name(told.source) if told is not None and options.strip_plan else None
    if source is not None and not source.is_file():
        raise MissingDependencyError(f"{path} was built without weights, and {source} is not beside it.")
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise EngineError(f"engine {path} cannot be read: {error.strerror}; {_AGAIN}.") from error
    if told is not None and sha256 is not None and hashlib.sha256(plan).hexdigest() != sha256:
        raise EngineError(f"{path} is not the engine that the manifest tells of; {_AGAIN}.")
    return session_of(
        plan,
        host_code=options.version_compatible,
        cuda_graph=options.cuda_graph,
        separate=bool(told and told.plugins),
        weight_streaming=options.weight_streaming,
        outputs=outputs,
        refit=None if source is None else lambda engine: refit(engine, source),
    )


def mismatch(made: Told, found: Environment) -> str:
    """Why an engine that was built so cannot run on what was found, and the way out; "" if it can."""
    built = parse_version(made.version)
    if made.options.version_compatible:
        if found.version[:1] != built[:1] or found.version < built:
            return (
                f"it was built by TensorRT {made.version} to run in later {built[0]}.x, here is "
                f"{found.version_text}; {_AGAIN}."
            )
    elif found.version != built:
        return f"it was built by TensorRT {made.version}, here is {found.version_text}; {_AGAIN}."
    return _other_gpu(made, found)


def _other_gpu(made: Told, found: Environment) -> str:
    hardware = made.options.hardware_compatible
    here, there = found.architecture, made.architecture
    if hardware == "ampere_plus":
        fits = here >= AMPERE
    else:
        fits = here == there and (hardware == "same_compute_capability" or found.gpu == made.gpu)
    if fits:
        return ""
    return (
        f"it was built for {made.gpu} (compute capability {there / 10:.1f}), here is {found.gpu} ({here / 10:.1f}); "
        f"{_AGAIN}, or with --hardware-compatible."
    )


def refit(engine: trt.ICudaEngine, source: Path) -> None:
    """Put the weights of an .onnx file into an engine that was built without them.

    Raises:
        MissingDependencyError: the file is not there.
        EngineError: TensorRT does not take the weights.
    """
    import tensorrt as trt

    if not source.is_file():
        raise MissingDependencyError(f"the engine was built without weights, and {source} is not beside it.")
    messages = Messages()
    logger = logger_to(messages)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(source)) or not refitter.refit_cuda_engine():
        raise EngineError(f"TensorRT does not take the weights of {source.name}: {advised(messages.errors)}")

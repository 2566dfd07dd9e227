# SPDX-License-Identifier: Apache-2.0
"""An engine file -> a session, after a look at whether this machine can run it at all.

TensorRT's own answer to an engine of another version or GPU is a failed assertion; what an engine was built with
stands in the manifest beside it, never inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EngineError, MissingDependencyError
from .environment import AHEAD_OF_TIME, Environment, environment, parse_version
from .hints import advised
from .listening import Messages, logger_to
from .session import Session, session_of

if TYPE_CHECKING:
    import tensorrt as trt

AMPERE = 80
_AGAIN = "build it again here: metaformer-export build DIR"


def load(path: Path, made: Mapping[str, Any] | None = None) -> Session:
    """Load an engine file.

    Args:
        made: what the manifest says it was built with (its "tensorrt" entry); None skips the look.

    Raises:
        MissingDependencyError: TensorRT or a GPU is not there, or what a plugin of the engine needs.
        EngineError: the file is missing, or the engine is of another version or GPU, or does not load.
    """
    found = environment()
    if made is not None and (reason := mismatch(made, found)):
        raise EngineError(f"{path} does not run here: {reason}")
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise EngineError(f"engine {path} cannot be read: {error.strerror}; {_AGAIN}.") from error
    options = {} if made is None else made["options"]
    source = path.with_name(made["source"]) if made is not None and options.get("strip_plan") else None
    return session_of(
        plan,
        host_code=bool(options.get("version_compatible")),
        cuda_graph=bool(options.get("cuda_graph")),
        separate=bool(made and made.get("plugins")),
        refit=None if source is None else lambda engine: refit(engine, source),
    )


def mismatch(made: Mapping[str, Any], found: Environment) -> str:
    """Why an engine that was built so cannot run on what was found, and the way out; "" if it can."""
    built, options = parse_version(made["version"]), made["options"]
    if options.get("version_compatible"):
        if found.version[:1] != built[:1] or found.version < built:
            return (
                f"it was built by TensorRT {made['version']} to run in later {built[0]}.x, here is "
                f"{found.version_text}; {_AGAIN}."
            )
    elif found.version != built:
        return f"it was built by TensorRT {made['version']}, here is {found.version_text}; {_AGAIN}."
    if reason := _other_gpu(made, found):
        return reason
    if made.get("plugins") and built < AHEAD_OF_TIME and not _has_triton():
        return (
            f'its plugins {", ".join(made["plugins"])} run through Triton; pip install "metaformer-export[tensorrt]".'
        )
    return ""


def _other_gpu(made: Mapping[str, Any], found: Environment) -> str:
    hardware = made["options"].get("hardware_compatible", "none")
    here, there = found.architecture, int(made["architecture"])
    if hardware == "ampere_plus":
        fits = here >= AMPERE
    else:
        fits = here == there and (hardware == "same_compute_capability" or found.gpu == made["gpu"])
    if fits:
        return ""
    return (
        f"it was built for {made['gpu']} (compute capability {there / 10:.1f}), here is {found.gpu} ({here / 10:.1f}); "
        f"{_AGAIN}, or with --hardware-compatible."
    )


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


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

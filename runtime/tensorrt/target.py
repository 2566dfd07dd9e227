# SPDX-License-Identifier: Apache-2.0
"""TensorRT as a target like the others: what it is called, what it computes in, what opens a session."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from ...artifacts import Arithmetic, Precision
from ...export.ops.mixer_op import DOMAIN
from ...export.serialize import ModelFile
from .building import Batch, build
from .environment import environment
from .loading import load
from .options import EngineOptions
from .session import Session, session_of

NAME = "tensorrt"
TITLE = "TensorRT"
PLAN = ".plan"
_FIRST_WITH_TF32 = 80


def check(precision: Precision) -> None:
    """Whether an engine of that precision can be built and run here; MissingDependencyError if not."""
    del precision  # strongly typed: an engine computes in what the file says
    environment()


def plain_arithmetic(options: EngineOptions, architecture: int) -> Arithmetic:
    """What an engine multiplies float32 in: GPUs before compute capability 8.0 have no TF32."""
    return "tf32" if options.tf32 and architecture >= _FIRST_WITH_TF32 else "fp32"


def settings(options: EngineOptions) -> dict[str, str | int]:
    """How a session is made."""
    return {"engine": "model.plan", "cuda_graph": int(options.cuda_graph)}


def opener(
    options: EngineOptions, batch: Batch, made: Mapping[str, Any] | None = None, outputs: Sequence[str] = ()
) -> Callable[..., Session]:
    """What opens sessions: of an engine file as it is, of any ONNX through an engine that is built in memory.

    Args:
        made: what the engine file was built with, by which it is loaded (Engine.told).
        outputs: names of its outputs, in order.
    """

    def open_session(model: ModelFile | Path, *, threads: int, at_once: int = 1) -> Session:
        del threads, at_once  # nothing is computed on the host, and an engine's context takes one call at a time
        if isinstance(model, Path) and model.suffix == PLAN:
            return load(model, made, outputs)
        with tempfile.TemporaryDirectory(prefix="metaformer-export-", ignore_cleanup_errors=True) as folder:
            source = model if isinstance(model, Path) else Path(folder) / model.name
            if isinstance(model, ModelFile):
                replace(model, embedded=False).write(source)
            plugins, names = _plugins_and_outputs(source)
            built = build(source, replace(options, strip_plan=False), batch, plugins=plugins)
        return session_of(
            built.plan,
            host_code=options.version_compatible,
            cuda_graph=options.cuda_graph,
            separate=bool(plugins),
            weight_streaming=options.weight_streaming,
            outputs=names,
        )

    return open_session


def _plugins_and_outputs(source: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Mixer ops of an .onnx file, each once, and its outputs in order."""
    graph = onnx.load(source, load_external_data=False).graph
    plugins = dict.fromkeys(node.op_type for node in graph.node if node.domain == DOMAIN)
    return tuple(plugins), tuple(each.name for each in graph.output)

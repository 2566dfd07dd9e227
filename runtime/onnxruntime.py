# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Precision
from ..errors import InputError, MissingDependencyError
from ..export.serialize import ModelFile
from .memory import trim

try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state
except ImportError as error:  # pragma: no cover - exercised in a clean environment
    raise MissingDependencyError(
        'ONNX Runtime is not installed; pip install "metaformer-export[cpu]" (or [gpu]).'
    ) from error

NAME = "onnxruntime-cpu"
TITLE = "ONNX Runtime"
_PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY = 3
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_INDICES = "tensor(int64)"
LOAD_ERRORS = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
)
"""What ONNX Runtime raises for a file it cannot run (a BF16 graph, for one); they share no base but Exception."""


@dataclass(frozen=True)
class Session:
    """A loaded model; call it with a batch (B, C, H, W) to get the outputs in order.

    A graph that was opened to be given its clusterings takes them as well, by name. `weights` are
    those that the session reads from memory of ours. Calls may come from as many threads as it takes `at_once`.
    """

    session: ort.InferenceSession
    input_name: str
    input_type: np.dtype[Any]
    weights: tuple[ort.OrtValue, ...] = ()
    at_once: int = 1

    def __call__(
        self, batch: NDArray[np.floating], given: Mapping[str, NDArray[np.int64]] | None = None
    ) -> list[NDArray[np.float32]]:
        feeds = {self.input_name: batch.astype(self.input_type, copy=False), **(given or {})}
        return [np.asarray(output, np.float32) for output in self.session.run(None, feeds)]

    def release(self) -> None:
        """Nothing: ONNX Runtime shrinks its arena at the end of a run only."""


def check(precision: Precision) -> None:
    """Whether ONNX Runtime's CPU computes in that precision; InputError if it does not."""
    if precision == "bf16":
        raise InputError("ONNX Runtime's CPU has no BF16.")


def settings(threads: int) -> dict[str, str | int]:
    """How a session is made."""
    return {"providers": _PROVIDER, "intra_op_num_threads": threads}


def open_session(
    model: ModelFile | Path, *, threads: int, at_once: int = 1, fuse: bool = True, literal: bool = False
) -> Session:
    """Load a serialised model or a file on the CPU.

    Args:
        threads: of all calls together.
        at_once: that many calls share them. Two on a thread each take four fifths of the time of one after the
            other on both (BOAT-CSWin): some kernels have one thread, and nobody waits for the other.
        fuse: False leaves out the layout changes and runs the nodes as they are in the file, for graphs that
            observe every value: else they would all be kept to the end.
        literal: quantise, dequantise and compute in float, as the file says, instead of in eight bits: what another
            target will compute, whatever this processor makes of it.

    Raises:
        MissingDependencyError: the CPU provider did not load, which would mean another one computes.
        InputError: the model does not take one batch of images.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(1, threads - at_once + 1)  # a call computes on its own thread, too
    options.log_severity_level = _ERRORS_ONLY
    if not fuse:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if literal:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    weights: tuple[ort.OrtValue, ...] = ()
    if isinstance(model, ModelFile) and model.weights:
        # In order: torch leaves transposed views of linear layers, which ONNX Runtime cannot read.
        arrays = [np.ascontiguousarray(array) for array in model.weights.values()]
        weights = tuple(ort.OrtValue.ortvalue_from_numpy(array) for array in arrays)
        options.add_external_initializers(list(model.weights), list(weights))
    source = model.graph if isinstance(model, ModelFile) else str(model)
    trim()
    session = ort.InferenceSession(source, options, providers=[_PROVIDER])
    trim()
    if session.get_providers() != [_PROVIDER]:
        raise MissingDependencyError(f"asked ONNX Runtime for {_PROVIDER}, got {session.get_providers()}.")
    inputs = session.get_inputs()
    types = [each.type for each in inputs]
    images = [each for each in types if each != _INDICES]
    if len(images) != 1 or types[0] not in _INPUT_TYPES:
        raise InputError(f"expected one input of float32 or float16, got {', '.join(types) or 'none'}.")
    return Session(session, inputs[0].name, np.dtype(_INPUT_TYPES[types[0]]), weights, at_once)

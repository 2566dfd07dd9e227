# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on the CPU.

Left alone, OpenVINO runs a float32 file in bfloat16 wherever the CPU can, and a float16 file in
either, and says nothing. So the precision is always set, and what was compiled is read back.
With INFERENCE_PRECISION_HINT f32 a file runs in the types that it is written in: a bfloat16 file in
bfloat16 with its islands of float32, which the hint bf16 would lower as well.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Precision
from ..errors import InputError, MissingDependencyError
from ..export.serialize import ModelFile
from .batches import joined, parts_of, rows_of
from .memory import trim

NAME = "openvino-cpu"
TITLE = "OpenVINO"
Hint = Literal["f32", "bf16"]
_DEVICE = "CPU"
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
"""What a device lists among OPTIMIZATION_CAPABILITIES if it computes in a precision; float16 is not offered, because
OpenVINO's CPU takes such a file in float32.
"""
_ARITHMETIC = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention"})
"""Layers of a compiled model whose type is the precision of the model; others may well follow the layout."""

_BYTES = frozenset({"u8", "i8"})


@dataclass(frozen=True)
class Session:
    """A compiled model; call it with a batch (B, C, H, W) to get the outputs in order.

    Attributes:
        executed: how many layers with arithmetic were compiled to each type, for instance {"bf16": 28}.
        batch: the images that it computes together; a call with fewer or more is filled up or cut. None for any number.
    """

    compiled: Any
    input_name: str
    executed: Mapping[str, int]
    at_once: int = 1
    batch: int | None = None

    def __call__(
        self, batch: NDArray[np.floating], given: Mapping[str, NDArray[np.int64]] | None = None
    ) -> list[NDArray[np.float32]]:
        feeds: dict[str, NDArray[Any]] = {self.input_name: batch.astype(np.float32, copy=False), **(given or {})}
        if self.batch is None:
            return self._run(feeds)
        parts = parts_of(len(batch), self.batch, self.batch)
        pieces = [self._run({name: rows_of(each, part) for name, each in feeds.items()}) for part in parts]
        return [joined(f"{i}", each, parts, 0) for i, each in enumerate(zip(*pieces, strict=True))]

    def _run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        try:
            results = self.compiled(feeds)
        except RuntimeError as error:
            raise InputError(f"OpenVINO stopped while it ran the model: {_reason(error)}") from error
        return [np.asarray(results[i], np.float32) for i in range(len(self.compiled.outputs))]

    def release(self) -> None:
        """Give back the activations of earlier batches, which are kept for the largest."""
        self.compiled.release_memory()


def check(precision: Precision) -> None:
    """Whether OpenVINO on this machine computes in that precision.

    Raises:
        MissingDependencyError: OpenVINO is not installed, or the CPU lacks the precision.
        InputError: the precision is not offered in OpenVINO on any CPU.
    """
    core = _core()
    if precision not in _CAPABILITIES:
        raise InputError(f"OpenVINO's CPU does not compute in {precision}, it would run the file in fp32.")
    offered = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[precision] not in offered:
        raise MissingDependencyError(f"OpenVINO has no {precision} on this CPU, it offers {', '.join(offered)}.")


def settings(threads: int, hint: Hint = "f32") -> dict[str, str | int]:
    """Properties that a model is compiled with."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
    }


def open_session(
    model: ModelFile | Path, *, threads: int, at_once: int = 1, hint: Hint = "f32", batch: int | None = None
) -> Session:
    """Compile a serialised model or a file for the CPU.

    Args:
        at_once: not followed: OpenVINO would compile the model for each call that may run beside another, which
            takes longer than is won.
        hint: "f32" runs the file in the types it is written in; "bf16" has OpenVINO lower a float32 file.
        batch: compile for this number of images: of sizes that it knows, OpenVINO moves fewer maps from one layout to
            another. None compiles for any number.

    Raises:
        MissingDependencyError: OpenVINO is not installed, or did not compile for the CPU in the precision asked.
        InputError: OpenVINO cannot run the model, or would run it in another precision than its own.
    """
    core = _core()
    trim()
    try:
        read = _read(core, model)
        types = {str(output.get_element_type().get_type_name()) for op in read.get_ops() for output in op.outputs()}
        if "f16" in types:
            raise InputError("the model holds float16, which OpenVINO's CPU would run in another type.")
        if batch is not None:
            read.reshape({each: _with_batch(each.partial_shape, batch) for each in read.inputs})
        compiled = core.compile_model(read, _DEVICE, settings(threads, hint))
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot run the model: {_reason(error)}") from error
    executed = _executed(compiled)
    trim()
    _verify(compiled, executed, hint, types)
    images = [each for each in read.inputs if each.get_element_type().is_real()]
    if len(images) != 1:
        raise InputError(f"expected one input of images, got {len(images)}.")
    return Session(compiled, images[0].get_any_name(), executed, batch=batch)


def _with_batch(shape: Any, batch: int) -> Any:
    """A partial shape whose first size is the batch."""
    shape[0] = batch
    return shape


@cache
def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            'OpenVINO is not installed; pip install "metaformer-export[openvino]" brings it.'
        ) from error
    return openvino.Core()


def _read(core: Any, model: ModelFile | Path) -> Any:
    if isinstance(model, Path):
        return core.read_model(model)
    if not model.weights:
        return core.read_model(model.graph)
    # OpenVINO finds weights outside the graph in a file only, and maps it: one without a name serves as well, and is
    # read in half the time that the same bytes take in memory.
    try:
        with tempfile.TemporaryDirectory(prefix="metaformer-export-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / model.name
            replace(model, embedded=False).write(path)
            return core.read_model(path)
    except OSError as error:
        raise InputError(f"no room for the temporary file that OpenVINO reads weights from: {error}") from error


def _executed(compiled: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        if str(info["layerType"].astype(str)) in _ARITHMETIC:
            counts[str(info["runtimePrecision"].astype(str))] += 1
    return dict(counts)


def _verify(compiled: Any, executed: Mapping[str, int], hint: Hint, types: Set[str]) -> None:
    """MissingDependencyError unless the model was compiled for the CPU, in the types that were asked for: bfloat16 and
    eight bits where the file has them, else float32.
    """
    devices = compiled.get_property("EXECUTION_DEVICES")
    if devices != [_DEVICE]:
        raise MissingDependencyError(f"asked OpenVINO for {_DEVICE}, got {', '.join(devices)}.")
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if taken != hint:
        raise MissingDependencyError(f"asked OpenVINO for {hint}, it takes {taken}.")
    lowered, quantised = hint == "bf16" or "bf16" in types, bool(_BYTES & types)
    if lowered and executed and "bf16" not in executed:
        raise MissingDependencyError(f"OpenVINO compiled a bfloat16 model to {_said(executed)}.")
    if quantised and executed and not _BYTES & set(executed):
        raise MissingDependencyError(f"OpenVINO compiled a quantised model to {_said(executed)}.")
    if not lowered and set(executed) - {"f32"} - (_BYTES if quantised else set()):
        raise MissingDependencyError(f"OpenVINO compiled a float32 model to {_said(executed)}.")


def _said(executed: Mapping[str, int]) -> str:
    return ", ".join(f"{count} layers in {name}" for name, count in executed.items())


def _reason(error: RuntimeError) -> str:
    """The last line of what OpenVINO says: places in its sources come first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__

# SPDX-License-Identifier: Apache-2.0
"""What is timed side by side: our portable file and what a user would otherwise run, each in a process of its own.

A process of its own, because runtimes disturb each other in one: their thread pools spin, their
allocators grow, and a peer that crashes would take all with it.
"""

from __future__ import annotations

import importlib.util
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metaformer_export.artifacts import Precision
from metaformer_export.calibration.images import load_images
from metaformer_export.export.lower import lower
from metaformer_export.export.precision import convert
from metaformer_export.export.serialize import serialize
from metaformer_export.export.trace import BFLOAT16_OPSET, DEFAULT_OPSET, trace
from metaformer_export.models.loading import load_model
from metaformer_export.models.mixers import feature_space_attention, global_filter, local_attention
from metaformer_export.proving import Way, judge_of
from metaformer_export.runtime import eager, onnxruntime, openvino

Array = NDArray[np.float32]
Run = Callable[[Array], Array]
Load = Callable[[], nn.Module]

MAX_ERROR_OF_CLUSTERS: Mapping[Precision, float] = {"fp32": 0.1, "bf16": 0.2}
"""Root mean square over the spread of eager's output, where rounding may move a token into another cluster: ours, whose
arithmetic is proved apart, measured up to 0.08 and 0.14, peers up to 0.06 and 0.17.
"""
_SETTLE_S = 0.06
_MIXER_OPS = (feature_space_attention, global_filter, local_attention)


@dataclass(frozen=True)
class Candidate:
    """One way to run a model.

    Attributes:
        runtime: key of RUNNERS.
        file: key of FILES, "" where the module itself runs.
        ours: an artefact of this tool, not a peer.
    """

    name: str
    runtime: str
    precision: Precision
    file: str = ""
    ours: bool = False

    @property
    def needs(self) -> str:
        """The package that has to be installed, or ""."""
        if self.runtime == "openvino":
            return "openvino"
        return {"slim.onnx": "onnxslim", "sim.onnx": "onnxsim"}.get(self.file, "")


LOWERED_PORTABLE = Candidate("portable in OpenVINO, bf16", "openvino", "bf16", "portable.onnx", ours=True)
"""What `--target auto` has beside the file's own precision; not for models that cluster, which stays in float32."""

CANDIDATES = (
    Candidate("portable in ONNX Runtime", "onnxruntime", "fp32", "portable.onnx", ours=True),
    Candidate("portable in OpenVINO", "openvino", "fp32", "portable.onnx", ours=True),
    LOWERED_PORTABLE,
    Candidate("--target openvino", "openvino", "fp32", "openvino.onnx", ours=True),
    Candidate("--target openvino --bf16", "openvino", "bf16", "openvino.bf16.onnx", ours=True),
    Candidate("eager", "eager", "fp32"),
    Candidate("torch.compile", "compile", "fp32"),
    Candidate("torch.compile, bf16", "compile", "bf16"),
    Candidate("torch export in ONNX Runtime", "onnxruntime", "fp32", "torch.onnx"),
    Candidate("torch export, onnxslim, in ONNX Runtime", "onnxruntime", "fp32", "slim.onnx"),
    Candidate("torch export, onnxsim, in ONNX Runtime", "onnxruntime", "fp32", "sim.onnx"),
    Candidate("torch export in OpenVINO", "openvino", "fp32", "torch.onnx"),
    Candidate("torch export in OpenVINO, bf16", "openvino", "bf16", "torch.onnx"),
)


def installed(candidate: Candidate) -> bool:
    """Whether the packages that it needs are there."""
    return not candidate.needs or importlib.util.find_spec(candidate.needs) is not None


def _ours(form: str, precision: Precision, file: str, model: str, size: int | None, folder: Path) -> None:
    """What an export writes; of a model that clusters, only if it holds parity with eager's own clusters.

    Timed candidates decide for themselves, each its own way on near ties, which no limit on outputs can judge well.
    """
    loaded = load_model(model, image_size=size)
    opset = BFLOAT16_OPSET if precision == "bf16" else DEFAULT_OPSET
    lowered = lower(trace(loaded.module, loaded.spec, opset), form)
    converted = convert(lowered, precision)
    serialize(converted.model, file).write(folder / file)
    judge = judge_of(loaded.module, lowered, load_images(None, loaded.spec))
    if judge.clusters:
        runtime = openvino if form == "openvino" else onnxruntime
        way = Way(lambda: folder / file, lambda: converted.model, runtime.open_session)
        proof = judge.compare({runtime.NAME: way}, precision, own=False)
        if not proof.passed:
            raise RuntimeError("; ".join(proof.failures))


class _PlainTorch:
    """torch for a mixer that must not see that it is being exported, and so writes out its mathematics."""

    compiler = SimpleNamespace(is_exporting=lambda: False)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _argsort(x: torch.Tensor, dim: int, stable: bool) -> torch.Tensor:
    return torch.argsort(x, dim=dim)


def _torch_export(model: str, size: int | None, folder: Path) -> None:
    loaded = load_model(model, image_size=size)
    example = torch.zeros(2, loaded.spec.in_chans, *loaded.spec.image_size)
    torch_export(loaded.module, example, folder / "torch.onnx")


def torch_export(model: nn.Module, example: torch.Tensor, path: Path) -> str:
    """What torch.onnx.export makes of the eager model when nothing tells it about mixer ops; returns the input's name.

    It cannot export the stable sort of balanced clustering; the authors' own sort is not stable either.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for module in _MIXER_OPS:
            stack.enter_context(mock.patch.object(module, "torch", _PlainTorch()))
        stack.enter_context(mock.patch.object(torch.Tensor, "argsort", _argsort))
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=DEFAULT_OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    program.save(path)
    return str(program.model.graph.inputs[0].name)


def _onnxslim(model: str, size: int | None, folder: Path) -> None:
    """torch's export, simplified by onnxslim."""
    import onnxslim

    onnxslim.slim(str(folder / "torch.onnx"), str(folder / "slim.onnx"))


def _onnxsim(model: str, size: int | None, folder: Path) -> None:
    """torch's export, simplified by onnxsim."""
    import onnx
    import onnxsim

    simplified, checked = onnxsim.simplify(onnx.load(folder / "torch.onnx"))
    if not checked:
        raise RuntimeError("onnxsim's own check failed")
    onnx.save(simplified, folder / "sim.onnx")


FILES: Mapping[str, Callable[[str, int | None, Path], None]] = {
    "portable.onnx": partial(_ours, "portable", "fp32", "portable.onnx"),
    "openvino.onnx": partial(_ours, "openvino", "fp32", "openvino.onnx"),
    "openvino.bf16.onnx": partial(_ours, "openvino", "bf16", "openvino.bf16.onnx"),
    "torch.onnx": _torch_export,
    "slim.onnx": _onnxslim,
    "sim.onnx": _onnxsim,
}
"""How each file is made, in an order in which each finds what it starts from."""


def _in_onnxruntime(candidate: Candidate, load: Load, folder: Path, threads: int) -> Run:
    session = onnxruntime.open_session(folder / candidate.file, threads=threads)
    return lambda batch: session(batch)[0]


def _in_openvino(candidate: Candidate, load: Load, folder: Path, threads: int) -> Run:
    # A file that says its precision runs as it is written; a float32 file is lowered as a whole.
    lowers = candidate.precision == "bf16" and ".bf16." not in candidate.file
    hint: openvino.Hint = "bf16" if lowers else "f32"
    session = openvino.open_session(folder / candidate.file, threads=threads, hint=hint)
    return lambda batch: session(batch)[0]


def _eagerly(candidate: Candidate, load: Load, folder: Path, threads: int) -> Run:
    module = load()
    return lambda batch: eager.run(module, batch)[0]


def _compiled(candidate: Candidate, load: Load, folder: Path, threads: int) -> Run:
    module = torch.compile(load(), dynamic=False)  # each batch as good as the first: compiled for its own shape

    def run(batch: Array) -> Array:
        low = candidate.precision == "bf16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
            logits: Array = module(torch.from_numpy(batch)).float().numpy()
        return logits

    return run


RUNNERS: Mapping[str, Callable[[Candidate, Load, Path, int], Run]] = {
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
    "eager": _eagerly,
    "compile": _compiled,
}


def _module(model: str, size: int | None) -> nn.Module:
    return load_model(model, image_size=size).module


def make_file(file: str, model: str, size: int | None, folder: Path, pipe: Connection) -> None:
    """A process: make one file; sends the seconds it took, or why it failed."""
    started = time.perf_counter()
    try:
        FILES[file](model, size, folder)
        pipe.send(time.perf_counter() - started)
    except Exception as error:  # whatever a peer dies of is its row
        pipe.send(_reason(error))


def serve(candidate: Candidate, model: str, size: int | None, folder: Path, threads: int, pipe: Connection) -> None:
    """A process: open one candidate, then answer each request until None comes.

    Requests are (batch (B, C, H, W), timed runs): the answer is (output, ms of each timed run), after
    a run that is not timed. What goes wrong is answered as a string.
    """
    try:
        torch.set_num_threads(threads)
        load = partial(_module, model, size)
        run = RUNNERS[candidate.runtime](candidate, load, folder, threads)
        pipe.send("")
    except Exception as error:  # whatever a peer dies of is its row
        pipe.send(_reason(error))
        return
    while (request := pipe.recv()) is not None:
        try:
            pipe.send(_answer(run, *request))
        except Exception as error:  # as above
            pipe.send(_reason(error))


def _answer(run: Run, batch: Array, runs: int) -> tuple[Array, list[float]]:
    time.sleep(_SETTLE_S)  # the thread pool of the one before may still spin
    output = run(batch)
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        run(batch)
        times.append(1e3 * (time.perf_counter() - begin))
    return output, times


def _reason(error: Exception) -> str:
    """One line, never empty."""
    lines = str(error).strip().splitlines() or traceback.format_exception_only(error)
    return f"{type(error).__name__}: {lines[0][:160]}"

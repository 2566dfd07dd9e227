# SPDX-License-Identifier: Apache-2.0
"""An output folder or an ONNX file as something that can be called."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError, MetaformerExportError
from .session import Session
from .threads import available_threads

_PLAN = ".plan"
RuntimeName = Literal["auto", "onnxruntime", "openvino", "tensorrt"]


@dataclass(frozen=True)
class _Way:
    runtime: str
    file: Path
    hint: str = "f32"
    batch: int | None = None


def load_engine(path: str | Path, *, runtime: RuntimeName = "auto", threads: int | None = None) -> Session:
    """Load an exported model for inference.

    Args:
        path: an output folder of this tool, an .onnx file or an engine (.plan).
        runtime: "auto" runs a folder as its `choice` says (the fastest way that passed where it was exported), and
            in ONNX Runtime where there is no choice; the others are taken as they are named.
        threads: None takes all cores this process may use.

    Raises:
        InputError: there is no such file, or it is no model that the runtime can load.
        MissingDependencyError: the runtime is not installed, or lacks the precision on this CPU, or a GPU.
        EngineError: an engine is of another TensorRT or GPU.
    """
    if runtime not in ("auto", *_OPEN):
        raise InputError(f"unknown runtime {runtime!r}; it is one of auto, {', '.join(_OPEN)}.")
    way = _way(Path(path), runtime)
    if not way.file.is_file():
        if way.file.suffix == _PLAN and way.file.parent.is_dir():
            raise InputError(f"{way.file} does not exist; metaformer-export build {way.file.parent} makes it.")
        raise InputError(f"{way.file} does not exist; give an output folder of metaformer-export or an .onnx file.")
    return _OPEN[way.runtime](way, threads or available_threads())


def _way(path: Path, runtime: RuntimeName) -> _Way:
    """Which runtime opens which file."""
    if not path.is_dir():
        usual = "tensorrt" if path.suffix == _PLAN else "onnxruntime"
        return _Way(usual if runtime == "auto" else runtime, path)
    if runtime == "tensorrt":
        return _Way(runtime, path / f"model{_PLAN}")
    choice = _choice(path)
    chosen = str(choice.get("runtime", "onnxruntime")).removesuffix("-cpu")
    if runtime not in ("auto", chosen) or chosen not in _OPEN:
        return _Way("onnxruntime" if runtime == "auto" else runtime, path / "model.onnx")
    settings = choice.get("settings", {})
    hint = settings.get("INFERENCE_PRECISION_HINT", "f32") if isinstance(settings, Mapping) else "f32"
    batch = choice.get("compiled_for")
    file = path / str(choice.get("file", "model.onnx"))
    return _Way(chosen, file, str(hint), batch if isinstance(batch, int) and batch > 0 else None)


def _choice(folder: Path) -> Mapping[str, object]:
    """What the manifest of a folder says is to be run; nothing where there is none."""
    return _said(folder, "choice") or {}


def _said(folder: Path, key: str) -> Mapping[str, object] | None:
    """An entry of a folder's manifest; None where there is none."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return None
    try:
        entry = json.loads(manifest.read_text(encoding="utf-8")).get(key)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{manifest} is damaged: {error}; give the .onnx file itself.") from error
    return entry if isinstance(entry, dict) else None


def _in_onnxruntime(way: _Way, threads: int) -> Session:
    from . import onnxruntime

    try:
        return onnxruntime.open_session(way.file, threads=threads)
    except (InputError, *onnxruntime.LOAD_ERRORS) as error:
        raise InputError(
            f"{way.file} cannot be run by ONNX Runtime on the CPU: {str(error).splitlines()[0]}"
        ) from error


def _in_openvino(way: _Way, threads: int) -> Session:
    from . import openvino

    try:
        hint: openvino.Hint = "bf16" if way.hint == "bf16" else "f32"
        return openvino.open_session(way.file, threads=threads, hint=hint, batch=way.batch)
    except MetaformerExportError as error:
        other = ' Or load it with runtime="onnxruntime".'
        raise type(error)(f"{way.file} cannot be run by OpenVINO: {error}{other}") from error


def _in_tensorrt(way: _Way, threads: int) -> Session:
    from .tensorrt.loading import load

    del threads
    folder, name = way.file.parent, way.file.name
    model, files = _said(folder, "model") or {}, _said(folder, "outputs") or {}
    outputs, known = model.get("outputs"), files.get(name)
    return load(
        way.file,
        _said(folder, "tensorrt"),
        tuple(map(str, outputs)) if isinstance(outputs, list) else (),
        sha256=str(known["sha256"]) if isinstance(known, dict) and "sha256" in known else None,
    )


_OPEN: Mapping[str, Callable[[_Way, int], Session]] = {
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
    "tensorrt": _in_tensorrt,
}

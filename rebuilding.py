# SPDX-License-Identifier: Apache-2.0
"""An engine for a folder that was exported elsewhere: its .onnx files -> model.plan, and the manifest's word on it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .calibration.whole import write_whole
from .checking import load_graph
from .delivered import read_manifest, read_spec
from .deploying import REPOSITORY, write_own_repository
from .engines import PLAN, Source, build_engine
from .errors import InputError
from .options import ExportOptions
from .output import MANIFEST, writing
from .progress import Progress
from .proving import FOR_PLUGINS
from .quantizing import DELIVERED, FOR_TENSORRT
from .report import STATUS_BEFORE_ENGINE, outputs_of, to_json
from .runtime.tensorrt import target as tensorrt
from .runtime.tensorrt.engine import Engine
from .runtime.tensorrt.environment import environment

_FILES = (DELIVERED, FOR_PLUGINS, FOR_TENSORRT)


def rebuild_engine(folder: Path, options: ExportOptions, progress: Progress) -> Engine:
    """Build model.plan in an output folder, in place of the one that is there, and its model repository from it.

    Nothing is replaced before the engine is there; a kill between its file and the manifest is found when the engine is
    loaded, by its sha256. With an engine that is not what was asked for, the folder is marked failed and its repository
    stays as it is.

    Raises:
        InputError: the folder is none of this tool's, or its files are gone or damaged.
        MissingDependencyError: TensorRT or a GPU is not there.
        EngineError: TensorRT builds no engine from the files.
    """
    spec, manifest = read_spec(folder), read_manifest(folder)
    if missing := [each for each in ("status", "outputs") if each not in manifest]:
        raise InputError(f"{folder / MANIFEST} is damaged ({missing[0]!r}); export the model again.")
    environment()
    sources = [Source(folder / name, load_graph(folder / name)) for name in _FILES if (folder / name).is_file()]
    if not sources:
        raise InputError(f"{folder} holds no {DELIVERED} to build an engine from; export the model again.")
    with writing(folder), tempfile.TemporaryDirectory(prefix=".engine-", dir=folder) as staging:
        asked = {**manifest.get("lowering", {}), **options.lowering}
        built = build_engine(sources, replace(options, lowering=asked), Path(staging), progress)
        engine = replace(built, path=folder / PLAN)
        content = with_engine(manifest, engine)
        content["outputs"] = manifest["outputs"] | {PLAN: outputs_of(built.path.parent)[PLAN]}
        shutil.move(built.path, engine.path)
        write_whole(folder / MANIFEST, to_json(content))
    wanted = manifest.get("triton", False) or (folder / REPOSITORY).is_dir()
    with writing(folder):
        _forget_proof(folder / "parity.json")
        _forget_times(folder / "bench.json")
        if wanted and content["status"] == "passed":
            write_own_repository(folder, spec, content)
        write_whole(folder / MANIFEST, to_json(content | {"outputs": outputs_of(folder)}))
    return engine


def _forget_proof(path: Path) -> None:
    """Take the old engine's proof out of parity.json; `metaformer-export parity` makes one of the new engine."""
    if path.is_file() and "engine" in (proof := json.loads(path.read_text(encoding="utf-8"))):
        write_whole(path, to_json({name: each for name, each in proof.items() if name != "engine"}))


def _forget_times(path: Path) -> None:
    """Take what was measured of the old engine out of bench.json."""
    if path.is_file():
        bench = json.loads(path.read_text(encoding="utf-8"))
        known = {name: _without_engine(bench[name]) for name in ("results", "candidates") if name in bench}
        if any(len(bench[name]) > len(rest) for name, rest in known.items()):
            write_whole(path, to_json(bench | known))


def _without_engine(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in rows if each.get("runtime") != tensorrt.NAME]


def with_engine(manifest: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """The manifest of a folder after an engine was built in it: failed with an engine that is not what was asked for,
    and what it was before once there is a better one.
    """
    content = {**manifest, "gpu": engine.gpu, "tensorrt": engine.told()}
    if "candidates" in content:  # without the old engine's verdict
        content["candidates"] = _without_engine(content["candidates"])
    before = content.pop(STATUS_BEFORE_ENGINE, content["status"])
    if engine.failures:
        return content | {"status": "failed", STATUS_BEFORE_ENGINE: before}
    return content | {"status": before}

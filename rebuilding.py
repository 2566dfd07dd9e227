# SPDX-License-Identifier: Apache-2.0
"""An engine for a folder that was exported elsewhere: its .onnx files -> model.plan, and the manifest's word on it."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .calibration.whole import write_whole
from .delivered import read_spec
from .engines import PLAN, Source, build_engine
from .errors import InputError
from .models.checkpoints import sha256_of
from .options import ExportOptions
from .output import MANIFEST, writing
from .progress import Progress
from .quantizing import DELIVERED, FOR_TENSORRT
from .report import to_json
from .runtime.tensorrt.engine import Engine
from .runtime.tensorrt.environment import environment

PLUGIN = "model.plugin.onnx"
_FILES = (DELIVERED, PLUGIN, FOR_TENSORRT)


def rebuild_engine(folder: Path, options: ExportOptions, progress: Progress) -> Engine:
    """Build model.plan in an output folder, in place of the one that is there.

    A kill leaves the old engine and manifest, or the new ones.

    Raises:
        InputError: the folder is none of this tool's, or its files are gone.
        MissingDependencyError: TensorRT or a GPU is not there.
        EngineError: TensorRT builds no engine from the files.
    """
    read_spec(folder)
    environment()
    sources = [Source(folder / name, ir.load(folder / name)) for name in _FILES if (folder / name).is_file()]
    if not sources:
        raise InputError(f"{folder} holds no {DELIVERED} to build an engine from; export the model again.")
    with writing(folder), tempfile.TemporaryDirectory(prefix=".engine-", dir=folder) as staging:
        built = build_engine(sources, options, Path(staging), progress)
        engine = replace(built, path=folder / PLAN)
        shutil.move(built.path, engine.path)
        write_whole(folder / MANIFEST, to_json(_told(folder, engine)))
    return engine


def _told(folder: Path, engine: Engine) -> dict[str, Any]:
    """The manifest with the engine in it."""
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    entry = {"sha256": sha256_of(engine.path), "bytes": engine.path.stat().st_size}
    outputs = dict(sorted((content["outputs"] | {PLAN: entry}).items()))
    return content | {"outputs": outputs, "gpu": engine.gpu, "tensorrt": engine.told()}

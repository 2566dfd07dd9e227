# SPDX-License-Identifier: Apache-2.0
"""A model repository of one export, from nothing: four models of one version, three where it gives stage maps."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ...calibration import preprocessing
from . import config
from .deployable import Deployable
from .options import RepositoryOptions
from .schema import CONFIG, ModelConfig, from_text, to_text

SERVED = "export.json"
"""Beside each version of a model: the export's manifest, what its file takes and gives, its engines, and the latencies
that its batching is derived from.
"""
_SOURCES = Path(__file__).parent / "server_models"
_VERSION = "1"


def write_repository(deployable: Deployable, folder: Path, options: RepositoryOptions) -> None:
    """Write the models into a folder, which must not exist yet; the ensemble last, since it needs the others."""
    folder.mkdir()
    encoded, pixels = deployable.photograph
    code = {"model.py": _source("preprocess"), "preprocessing.py": Path(preprocessing.__file__).read_bytes()}
    # A string tensor is its length in four bytes, little-endian, and its bytes.
    photograph = {f"warmup/{config.WARM_UP_IMAGE}": struct.pack("<I", len(encoded)) + encoded}
    _write(folder, config.preprocess_config(deployable, options), code, photograph)
    if deployable.classifies:
        labels = {config.LABELS: _labels(deployable)} if deployable.labels else {}
        code = {"model.py": _source("postprocess"), **labels}
        _write(folder, config.postprocess_config(deployable, options), code)
    code = {"model.py": _source("onnxruntime_model")} if deployable.backend == "python" else {}
    beside = {f"warmup/{config.WARM_UP_PIXELS}": pixels}
    if deployable.classifies and deployable.labels:
        beside[config.LABELS] = _labels(deployable)
    _write(folder, config.model_config(deployable, options), {**code, SERVED: _served(deployable)}, beside)
    for name, path in deployable.files.items():
        _place(path, folder / deployable.name / _VERSION / name)
    _write(folder, config.ensemble_config(deployable, options), {})


def _write(
    folder: Path, made: ModelConfig, version: Mapping[str, bytes], beside: Mapping[str, bytes] | None = None
) -> None:
    """One model: its configuration, the files of its version, and those beside the configuration."""
    text = to_text(made)
    assert from_text(text) == made, "what is written is what was meant"
    files = {CONFIG: text.encode(), **(beside or {}), **{f"{_VERSION}/{name}": data for name, data in version.items()}}
    (folder / made.name / _VERSION).mkdir(parents=True)
    for name, data in files.items():
        path = folder / made.name / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def _place(source: Path, target: Path) -> None:
    """The same file under another name where the file system can; weights are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _source(name: str) -> bytes:
    return (_SOURCES / f"{name}.py").read_bytes()


def _labels(deployable: Deployable) -> bytes:
    return "".join(f"{label}\n" for label in deployable.labels).encode()


def _served(deployable: Deployable) -> bytes:
    """What operators and the linter want to know of a version: what it is, and what its batching comes from."""
    curve = [{"batch": batch, "ms": milliseconds} for batch, milliseconds in deployable.curve.points]
    manifest = {key: value for key, value in deployable.manifest.items() if key != "outputs"}  # of another folder
    told = {
        "manifest": manifest,
        "inputs": [asdict(deployable.input)],
        "outputs": [asdict(each) for each in deployable.outputs],
        "engines": deployable.engines,
        "latencies": {"measured": deployable.curve.source, "points": curve},
    }
    # A manifest may hold a path, and a difference that is not a number, which JSON has not.
    plain = json.loads(json.dumps(told, default=str), parse_constant=lambda name: None)
    return (json.dumps(plain, indent=2) + "\n").encode()

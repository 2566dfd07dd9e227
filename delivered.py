# SPDX-License-Identifier: Apache-2.0
"""An output folder, read back: which model it is of, and that model in eager PyTorch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts import ModelSpec
from .errors import CheckpointError, InputError
from .models.family import Preprocessing
from .output import MANIFEST

if TYPE_CHECKING:
    from torch import nn

_SEED = re.compile(r"random, seed (-?\d+)")


def read_spec(folder: Path) -> ModelSpec:
    """What the manifest says of the model; InputError if there is none, or it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is no output folder of metaformer-export: it has no {MANIFEST}.")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        model: Mapping[str, Any] = dict(content["model"])
        how = {key: _tuples(value) for key, value in model["preprocessing"].items()}
        given = {key: _tuples(value) for key, value in model.items()} | {"preprocessing": Preprocessing(**how)}
        sizes = {key: _tuples(value) for key, value in model.get("sizes", {}).items()}
        return ModelSpec(**{**given, "sizes": sizes})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); export the model again.") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an output folder; InputError if there is none, or it is damaged."""
    read_spec(folder)
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return content


def file_of(folder: Path, name: str) -> Path:
    """A graph or an engine of an output folder; InputError if it has none of that name."""
    path = folder / name
    if not path.is_file():
        held = ", ".join(sorted(each.name for each in folder.glob("model*") if each.suffix in (".onnx", ".plan")))
        raise InputError(f"{path} does not exist; {folder} holds {held}.")
    return path


def eager_model(spec: ModelSpec, checkpoint: Path | None) -> nn.Module | None:
    """The model that was exported, in eval mode; None where it needs its checkpoint, which is not given.

    Raises:
        CheckpointError: the checkpoint is not the one that was exported, or is given for random weights.
    """
    from .models.checkpoints import read_checkpoint
    from .models.loading import load_model

    seed = _SEED.fullmatch(spec.weights)
    if checkpoint is None and seed is None:
        return None
    read = None
    if checkpoint is not None:
        read = read_checkpoint(checkpoint)
        if read.sha256 != spec.checkpoint_sha256:
            raise CheckpointError(f"checkpoint {checkpoint} is not what was exported, which was {spec.weights}.")
    return load_model(
        spec.name,
        checkpoint=read,
        num_classes=None if spec.features else spec.num_classes,
        image_size=spec.image_size,
        in_chans=spec.in_chans,
        features=spec.features,
        neck=spec.neck,
        sizes=spec.sizes,
        seed=0 if seed is None else int(seed[1]),
    ).module


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value

# SPDX-License-Identifier: Apache-2.0
"""What a model repository needs of the server that is to load it, as its configurations say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from .publishing import versions_of
from .schema import CONFIG, read
from .served import Served

REPOSITORY = "triton"
"""The model repository in an output folder."""
_GPU, _ANY = "KIND_GPU", "KIND_AUTO"


@dataclass(frozen=True)
class Needs:
    """What a server has to have.

    Attributes:
        models: names, of those without a configuration as well.
        tensorrt: versions that engines were built by, each once; () without an engine.
        version_compatible: whether an engine is, which a server loads only if it is told so.
        python: whether models are in Python, which the server's own Python runs, with Pillow.
        gpu: whether a model runs on nothing else.
        gpu_if_any: whether a model runs on a GPU if there is one.
        response_cache: whether a model wants its answers kept.
    """

    models: tuple[str, ...]
    tensorrt: tuple[str, ...] = ()
    version_compatible: bool = False
    python: bool = False
    gpu: bool = False
    gpu_if_any: bool = False
    response_cache: bool = False


def find_repository(folder: Path) -> Path:
    """The model repository of an output folder, or the folder itself if it is one.

    Raises:
        InputError: there is no model in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give an output folder of an export, or a model repository.")
    for candidate in (folder / REPOSITORY, folder):
        if candidate.is_dir() and _models(candidate):
            return candidate
    raise InputError(
        f"{folder} is no model repository and has none in {REPOSITORY}/; an export writes one, and metaformer-export "
        "triton DIR --repository R another."
    )


def needs_of(repository: Path) -> Needs:
    """Read from the configurations; those that cannot be read are left to the server, which says why it refuses them.

    Raises:
        InputError: what stands beside an engine is damaged.
    """
    folders = _models(repository)
    served = [model for model in map(_served, folders) if model is not None]
    engines = [engine for model in served if model.backend == "tensorrt" for _, engine in model.engines()]
    kinds = {kind for model in served for kind in _kinds(model)}
    return Needs(
        models=tuple(folder.name for folder in folders),
        tensorrt=tuple(dict.fromkeys(engine["version"] for engine in engines)),
        version_compatible=any(engine.get("options", {}).get("version_compatible") for engine in engines),
        python=any(model.backend == "python" for model in served),
        gpu=_GPU in kinds,
        gpu_if_any=_ANY in kinds,
        response_cache=any(model.config.response_cache.enable for model in served),
    )


def _models(repository: Path) -> list[Path]:
    """Folders that a server takes for models: with a configuration, or a version whose file says enough."""
    folders = sorted(each for each in repository.iterdir() if each.is_dir() and not each.name.startswith("."))
    return [each for each in folders if (each / CONFIG).is_file() or versions_of(each)]


def _served(folder: Path) -> Served | None:
    try:
        return Served(folder, read(folder / CONFIG))
    except InputError:
        return None


def _kinds(model: Served) -> Sequence[str]:
    """What the instances of a model run on; without a word on it, Triton chooses, for an engine a GPU."""
    if model.ensemble:
        return []
    if model.backend == "tensorrt":
        return [_GPU]
    return [each.Kind.Name(each.kind) for each in model.config.instance_group] or [_ANY]

# SPDX-License-Identifier: Apache-2.0
"""A model of a repository as the linter sees it: its configuration, its versions, and what is known of their files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import InputError
from .deployable import ONNX, PLAN, Tensor, tensors_of
from .publishing import versions_of
from .schema import ModelConfig
from .writing import SERVED

FILES = {"tensorrt": PLAN, "onnxruntime": ONNX, "python": "model.py"}
"""What a version of each backend holds, unless the configuration names another file."""


@dataclass(frozen=True)
class Served:
    """A model of a repository."""

    folder: Path
    config: ModelConfig

    @property
    def ensemble(self) -> bool:
        return bool(self.config.platform == "ensemble")

    @property
    def backend(self) -> str:
        """For instance tensorrt, which older configurations call tensorrt_plan."""
        return str(self.config.backend or self.config.platform.partition("_")[0])

    @property
    def versions(self) -> list[Path]:
        """Folders of its versions, in order."""
        return [self.folder / str(version) for version in versions_of(self.folder)]

    def file_names(self) -> list[str]:
        """What each version needs to hold."""
        if self.ensemble:
            return []
        named = self.config.default_model_filename or FILES.get(self.backend, "")
        return sorted({named, *self.config.cc_model_filenames.values()} - {""})

    @cached_property
    def told(self) -> dict[Path, Mapping[str, Any]]:
        """What export.json says of each version that has one."""
        return {version: _json(version / SERVED) for version in self.versions if (version / SERVED).is_file()}

    def tensors(self, version: Path) -> tuple[list[Tensor], list[Tensor]] | None:
        """Inputs and outputs as the version's file has them, with the batch; None if that cannot be seen."""
        path = version / (self.config.default_model_filename or ONNX)
        if self.backend in ("onnxruntime", "python") and path.suffix == ".onnx" and path.is_file():
            image, outputs = tensors_of(path)
            return [image], list(outputs)
        told = self.told.get(version)
        if told is None:
            return None
        return [_tensor(each) for each in told["inputs"]], [_tensor(each) for each in told["outputs"]]

    def engines(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What the manifests say of the engines of all versions, by path below the model's folder."""
        for version, told in self.told.items():
            for file, engine in told["engines"].items():
                yield f"{version.name}/{file}", engine


def _tensor(each: Mapping[str, Any]) -> Tensor:
    """A tensor of export.json, which are without the batch, as the file has it."""
    return Tensor(each["name"], each["data_type"], (-1, *each["dims"]))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    if not {"inputs", "outputs", "engines"} <= set(content):
        raise InputError(f"{path} is damaged: it does not say what the model takes and gives.")
    return content

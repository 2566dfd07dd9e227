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
from ..tensorrt.environment import parse_version
from .deployable import ONNX, PLAN, OnnxFile, Tensor, onnx_file
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
        """Folders of the versions that the policy has ready, in order: nothing asks more of the others."""
        there, policy = versions_of(self.folder), self.config.version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                ready = there
            case "specific":
                ready = [version for version in there if version in policy.specific.versions]
            case _:
                ready = there[-(policy.latest.num_versions or 1) :]
        return [self.folder / str(version) for version in ready]

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

    def weights(self, version: Path) -> list[str]:
        """Files beside a version's graph that its weights lie in; none of one that cannot be read."""
        path = self._graph(version)
        try:
            return [] if path is None else list(self._onnx_file(path).beside)
        except InputError:
            return []

    def tensors(self, version: Path) -> tuple[list[Tensor], list[Tensor]] | None:
        """Inputs and outputs as the version's file has them, with the batch; None if that cannot be seen."""
        if (path := self._graph(version)) is not None:
            file = self._onnx_file(path)
            return [file.image], list(file.outputs)
        told = self.told.get(version)
        if told is None:
            return None
        return _tensors(told, "inputs"), _tensors(told, "outputs")

    def _graph(self, version: Path) -> Path | None:
        path = version / (self.config.default_model_filename or ONNX)
        runs = self.backend in ("onnxruntime", "python") and path.suffix == ".onnx"
        return path if runs and path.is_file() else None

    def _onnx_file(self, path: Path) -> OnnxFile:
        """Read once: several rules ask, and a file may be hundreds of megabytes."""
        if path not in self._onnx_files:
            self._onnx_files[path] = onnx_file(path)
        return self._onnx_files[path]

    @cached_property
    def _onnx_files(self) -> dict[Path, OnnxFile]:
        return {}

    def engines(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What the manifests say of the engines of all versions, by path below the model's folder."""
        for version, told in self.told.items():
            for file, engine in told["engines"].items():
                yield f"{version.name}/{file}", engine


def _tensors(told: Mapping[str, Any], field: str) -> list[Tensor]:
    """Tensors of export.json, which are without the batch, as the file has them."""
    return [Tensor(each["name"], each["data_type"], (-1, *each["dims"])) for each in told[field]]


def _json(path: Path) -> Mapping[str, Any]:
    """export.json, with all that is asked of it."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    try:
        for field in ("inputs", "outputs"):
            _tensors(content, field)
        for engine in content["engines"].values():
            parse_version(engine["version"])
            _, _, _ = map(int, engine["batch"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: it does not say what the model takes and gives.") from error
    return content

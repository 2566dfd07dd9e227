# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of an engine, read back: a hand-edited or cut-off entry is an error of one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import InputError
from .environment import parse_version
from .options import EngineOptions


@dataclass(frozen=True)
class Told:
    """The part of a manifest's "tensorrt" entry by which an engine is loaded and run.

    Attributes:
        path: name of the engine's file.
        source: name of the .onnx file that it was built from.
        version, gpu, architecture, plugins, batch, options: as `Engine` has them.
    """

    path: str
    source: str
    version: str
    gpu: str
    architecture: int
    plugins: tuple[str, ...]
    batch: tuple[int, int, int]
    options: EngineOptions


def read_told(entry: Mapping[str, Any]) -> Told:
    """The entry as data; keys that are not known are of a later release, and left out.

    Raises:
        InputError: the entry is damaged.
    """
    try:
        smallest, usual, largest = map(int, entry["batch"])
        known = {each.name for each in fields(EngineOptions)}
        options = EngineOptions(**{key: each for key, each in entry["options"].items() if key in known})
        told = Told(
            path=str(entry["path"]),
            source=str(entry["source"]),
            version=str(entry["version"]),
            gpu=str(entry["gpu"]),
            architecture=int(entry["architecture"]),
            plugins=tuple(map(str, entry["plugins"])),
            batch=(smallest, usual, largest),
            options=options,
        )
        if not parse_version(told.version):
            raise ValueError(f"version {told.version!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"what the manifest says of the engine is damaged ({error!r}); build it again: metaformer-export build DIR."
        ) from error
    return told

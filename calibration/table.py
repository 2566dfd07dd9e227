# SPDX-License-Identifier: Apache-2.0
"""calibration.json: the ranges of a graph's tensors, and what they were computed from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..artifacts import Method
from ..errors import InputError
from .thresholds import METHODS
from .whole import write_whole

FORMAT = 1
_TITLES = {
    "graph_sha256": "another graph",
    "weights_sha256": "other weights",
    "data_sha256": "other images",
    "method": "another method",
    "equalize": "another setting of equalisation",
}
"""What a difference in each part of a key means, the gravest first."""


@dataclass(frozen=True)
class Key:
    """What ranges depend on: those of an equal key can be used again.

    Attributes:
        graph_sha256: of the graph without its large weights, which are in `weights_sha256`.
        data_sha256: of all images and their order (`Dataset.sha256`).
        equalize: whether channels may be scaled.
    """

    graph_sha256: str
    weights_sha256: str
    data_sha256: str
    method: Method
    equalize: bool

    def difference(self, other: Key) -> str:
        """What the first difference means, for instance "other weights"; "" for an equal key."""
        return next((title for part, title in _TITLES.items() if getattr(self, part) != getattr(other, part)), "")


@dataclass(frozen=True)
class Calibration:
    """Ranges (low, high) of float32 tensors by name, with what a reader should know of their origin.

    Attributes:
        source: of the images, in words.
        equalized: exponents of two that the channels of tensors were divided by before, by name (calibration.equalize).
    """

    key: Key
    model: str
    source: str
    images: int
    ranges: Mapping[str, tuple[float, float]]
    equalized: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        content = {"format": FORMAT, **asdict(self)}
        content["equalized"] = {name: " ".join(map(str, powers)) for name, powers in self.equalized.items()}
        write_whole(path, json.dumps(content, indent=2) + "\n")


def key_of(
    graph: bytes, weights: Mapping[str, NDArray[Any]], data_sha256: str, method: Method, *, equalize: bool
) -> Key:
    """Of a graph, serialised without its large weights, of these, and of the images that are shown to it."""
    digest = hashlib.sha256()
    for name, array in weights.items():
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return Key(hashlib.sha256(graph).hexdigest(), digest.hexdigest(), data_sha256, method, equalize)


def read_calibration(path: Path) -> Calibration:
    """What `Calibration.write` wrote.

    Raises:
        InputError: no such file, or it is damaged, of another format, or has a range that is none.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"{path} is of format {content['format']}, this version reads {FORMAT}; calibrate again.")
        key = Key(**{each.name: content["key"][each.name] for each in fields(Key)})
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
        powers = {str(name): tuple(int(each) for each in text.split()) for name, text in content["equalized"].items()}
        read = Calibration(key, str(content["model"]), str(content["source"]), int(content["images"]), ranges, powers)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no calibration.json, or it is damaged ({error}); calibrate again.") from error
    if key.method not in METHODS:
        raise InputError(f"{path} was made by method {key.method!r}, which is not known; use {', '.join(METHODS)}.")
    wrong = next(
        (name for name, ends in ranges.items() if not all(map(math.isfinite, ends)) or ends[0] > ends[1]), None
    )
    if wrong is not None:
        raise InputError(f"{path} has no range for {wrong}: {ranges[wrong]}; calibrate again.")
    return read


def check_for(calibration: Calibration, path: Path, key: Key, model: str) -> None:
    """InputError unless ranges that the user gave are of this graph and these weights; images and method may differ."""
    wanted = replace(calibration.key, graph_sha256=key.graph_sha256, weights_sha256=key.weights_sha256)
    if difference := calibration.key.difference(wanted):
        own = " (--target onnx and openvino quantise graphs of their own)" if calibration.model == model else ""
        raise InputError(
            f"{path} is of {difference} ({calibration.model}) than this {model}{own}; "
            "calibrate with --calib-data instead."
        )

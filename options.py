# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of an export, checked once, before any work is done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from .artifacts import LoweringForm, Method, Precision, Target
from .errors import InputError
from .runtime.tensorrt.options import EngineOptions

MAX_BATCH = 1024
METHODS: tuple[Method, ...] = get_args(Method)
InputOutput = Literal["fp32", "fp16"]
_KNOWN = {"precision": get_args(Precision), "target": get_args(Target), "io": get_args(InputOutput)}


@dataclass(frozen=True)
class BatchRange:
    """Batch sizes that the exported model is for: smallest, usual, largest."""

    smallest: int = 1
    usual: int = 1
    largest: int = 32

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """From "N" or "MIN:OPT:MAX"; InputError unless 1 <= MIN <= OPT <= MAX."""
        if re.fullmatch(r"\d{1,9}(:\d{1,9}:\d{1,9})?", text) is None:
            raise InputError(f"--batch takes N or MIN:OPT:MAX, for instance 1:8:32; got {text!r}.")
        numbers = [int(part) for part in text.split(":")]
        smallest, usual, largest = numbers if len(numbers) == 3 else (1, numbers[0], numbers[0])
        if not 1 <= smallest <= usual <= largest <= MAX_BATCH:
            raise InputError(f"--batch needs 1 <= MIN <= OPT <= MAX <= {MAX_BATCH}; got {text}.")
        return cls(smallest, usual, largest)

    @property
    def only(self) -> int | None:
        """The one size that there is; None where there are several."""
        return self.largest if self.smallest == self.largest else None


DEFAULT_BATCH = BatchRange()
"""Taken for "not given"; an engine is then built for 1 to 32, and 8 as the usual one."""
DEFAULT_ENGINE = EngineOptions()
ENGINE_BATCH = BatchRange(1, 8, 32)


def parse_resolution(text: str) -> tuple[int, int]:
    """(height, width) from "N" or "HxW"."""
    match = re.fullmatch(r"(\d{1,9})(?:[xX](\d{1,9}))?", text)
    if match is None:
        raise InputError(f"--resolution takes N or HxW in pixels, for instance 224 or 256x320; got {text!r}.")
    height = int(match[1])
    return height, int(match[2] or height)


def parse_size(text: str) -> tuple[str, int | tuple[int, ...]]:
    """A name and its number or numbers, from "width=16" or "depths=1,1,2,1"."""
    name, equals, value = text.partition("=")
    parts = [part.strip() for part in value.split(",")]
    if not equals or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise InputError(f"--set takes NAME=N or NAME=N,N,..., for instance depths=1,1,2,1; got {text!r}.")
    numbers = tuple(int(part) for part in parts)
    return name.strip(), numbers if len(numbers) > 1 else numbers[0]


@dataclass(frozen=True)
class CalibrationOptions:
    """Where the ranges of a quantised model come from.

    Attributes:
        data: images to look at: a folder of them, a tree of classes, or .npy/.npz files; None for none.
        size: how many are drawn from them, by the seed.
        method: how a range is chosen.
        batch_size: images that run at once.
        ranges: a calibration.json of an earlier run, instead of images.
        equalize: whether channels may be scaled to share a range better, where that lowers the error.

    Raises:
        InputError: a number below 1, or no such method.
    """

    data: str | Path | None = None
    size: int = 256
    method: Method = "mse"
    batch_size: int = 8
    ranges: str | Path | None = None
    equalize: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"--calib-method {self.method!r} is not known; use {', '.join(METHODS)}.")
        for name, number in (("--calib-size", self.size), ("--batch-size", self.batch_size)):
            if number < 1:
                raise InputError(f"{name} must be at least 1; got {number}.")


@dataclass(frozen=True)
class ExportOptions:
    """One export. Fields are the options of the command line; None is the model's own default.

    Without a model, it is the one that the checkpoint is of.

    Raises:
        InputError: precision, target or io is none that there is.
    """

    model: str | None = None
    checkpoint: str | Path | None = None
    precision: Precision = "fp32"
    target: Target = "auto"
    resolution: tuple[int, int] | None = None
    batch: BatchRange = DEFAULT_BATCH
    num_classes: int | None = None
    features: bool = False
    neck: str = ""
    sizes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    output: str | Path | None = None
    images: str | Path | None = None
    opset: int | None = None
    io: InputOutput = "fp32"
    seed: int = 0
    calibration: CalibrationOptions = CalibrationOptions()
    plan: str | Path | None = None
    force: bool = False
    engine: EngineOptions = DEFAULT_ENGINE
    lowering: Mapping[str, LoweringForm] = field(default_factory=dict)
    plugins: bool = True
    triton: bool = True
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name} {value!r} is not known; use {', '.join(known[:-1])} or {known[-1]}.")

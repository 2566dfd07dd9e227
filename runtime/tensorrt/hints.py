# SPDX-License-Identifier: Apache-2.0
"""What to do about errors of TensorRT's that are known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 3


@dataclass(frozen=True)
class Hint:
    """A regular expression that an error matches, and what to do about it."""

    pattern: str
    advice: str


HINTS: tuple[Hint, ...] = (
    Hint(
        r"Plugin not found|getPluginCreator could not find|no (plugin )?creator",
        "a plugin is not registered: install Triton with the [tensorrt] extra, or build with --no-plugins",
    ),
    Hint(
        r"insufficient workspace|Could not find any implementation for node",
        "no tactic fits: raise --workspace, or --optimization-level 5; for a single layer see the known issues in "
        "docs/tensorrt.md",
    ),
    Hint(
        r"out of memory|OutOfMemory|Cuda Runtime \(out of memory\)",
        "the GPU's memory is full: lower the largest batch of --batch MIN:OPT:MAX, or --workspace",
    ),
    Hint(
        r"version tag does not match|Serialization assertion .*[Vv]ersion|different version of TensorRT",
        "the engine was built by another TensorRT: build it again here, or with --version-compatible",
    ),
    Hint(
        r"[Cc]ompute capability|different (GPU|device)|incompatible device",
        "the engine was built for another GPU: build it again here, or with --hardware-compatible ampere_plus",
    ),
    Hint(r"lean runtime|engine_host_code_allowed", "a version-compatible engine runs code of its own when it loads"),
    Hint(
        r"CUDA initialization failure|no CUDA-capable device|driver version is insufficient",
        "the driver is missing or older than TensorRT's CUDA: nvidia-smi shows which it is",
    ),
    Hint(r"strongly typed|[Tt]ypes? mismatch|same type", "two inputs of a layer differ in type: a cast is missing"),
)


def advised(errors: Sequence[str]) -> str:
    """The first errors as one sentence, and the advice for those that are known."""
    text = "; ".join(each.rstrip(".") for each in errors[:_SHOWN]) or "TensorRT gave no reason"
    more = f" (and {len(errors) - _SHOWN} more)" if len(errors) > _SHOWN else ""
    advice = next((hint.advice for hint in HINTS for each in errors if re.search(hint.pattern, each)), "")
    return f"{text}{more}{f'. {advice[0].upper()}{advice[1:]}' if advice else ''}."

# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: read them without running code from them, and find the tensors inside."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError

WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict")
"""Keys that training code keeps its weights under, averaged ones first: those are what authors evaluate."""
_PREFIXES = ("module.", "_orig_mod.")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one file.

    Attributes:
        tensors: float32 on the CPU, under the names in the file less wrappers and prefixes.
        wrapper: key the tensors were found under, "" if at the top.
        stored_as: element types in the file, for instance ("float16",).
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    wrapper: str
    stored_as: tuple[str, ...]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read .pth, .pt, .bin (pickles with weights_only=True) or .safetensors.

    Raises:
        CheckpointError: the file is missing, damaged, holds something else, or would run code.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist.")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    wrapper, tensors = _unwrap(path, content)
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    stored = tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
    return Checkpoint(path, sha256_of(path), floats, wrapper, stored)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged or not a safetensors file ({error}).") from error


def _read_pickle(path: Path) -> Any:
    try:
        # Namespace is what training scripts keep their arguments in; it holds data only.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None and not _calls_functions(path):
            raise CheckpointError(f"{path} is not a checkpoint that torch can read, or it is damaged.") from error
        named = "" if refused is None else f" ({refused[1]})"
        raise CheckpointError(
            f"checkpoint {path} was refused: it is a pickle that would run code when opened{named}. "
            "Save its state dict alone, with torch.save or as .safetensors, and use that."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} is damaged, cut short or not a checkpoint ({reason[:120]})."
        ) from error


def _calls_functions(path: Path) -> bool:
    """Whether a bare pickle imports or calls anything; reads its opcodes without running them."""
    try:
        with path.open("rb") as file:
            return any(op.name in ("GLOBAL", "STACK_GLOBAL", "REDUCE") for op, _, _ in pickletools.genops(file))
    except ValueError:
        return False


def _unwrap(path: Path, content: Any) -> tuple[str, dict[str, Tensor]]:
    wrapper = ""
    while isinstance(content, Mapping):
        key = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping) and content[k]), None)
        if key is None:
            break
        wrapper, content = key, content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; expected a state dict, bare or under {', '.join(WRAPPERS)}.")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return wrapper, tensors

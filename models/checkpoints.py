# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: read them without running code from them, and find the tensors inside."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import pickle
import pickletools
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError

WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict")
"""Keys that training code keeps its weights under, averaged ones first: those are what authors evaluate."""
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Of DistributedDataParallel, torch.compile and Lightning."""
_CHUNK = 1 << 20
_LFS_POINTER = b"version https://git-lfs"
_DEEPEST = 4
_HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
)
"""What training scripts keep beside the weights: arguments, paths and figures. Opening them runs nothing."""


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
    _refuse_placeholders(path)
    content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    wrapper, tensors = _unwrap(path, content)
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    stored = tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
    return Checkpoint(path, sha256_of(path), floats, wrapper, stored)


def _refuse_placeholders(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(len(_LFS_POINTER))
    if not head:
        raise CheckpointError(f"checkpoint {path} is empty.")
    if head == _LFS_POINTER:
        raise CheckpointError(f"checkpoint {path} is a Git LFS pointer, not the file; git lfs pull fetches it.")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _is_safetensors(path: Path) -> bool:
    """Whether the content is one: 8 bytes of header length, then a JSON object. Names can lie."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix.lower() == ".safetensors" or (head[8:] == b"{" and head[6:8] == bytes(2))


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged or not a safetensors file ({error}).") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(list(_HARMLESS)), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        if isinstance(error, pickle.UnpicklingError):
            _refuse_code(path, error)
        reason = f"{type(error).__name__}: {str(error)[:120]}".splitlines()[0]
        raise CheckpointError(f"checkpoint {path} is damaged, cut short or not a checkpoint ({reason}).") from error


def _refuse_code(path: Path, error: pickle.UnpicklingError) -> None:
    """Raise CheckpointError if what torch did not read is a pickle that calls functions."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused is None and not _calls_functions(path):
        raise CheckpointError(f"{path} is not a checkpoint that torch can read, or it is damaged.") from error
    named = "" if refused is None else f" ({refused[1]})"
    raise CheckpointError(
        f"checkpoint {path} was refused: it is a pickle that would run code when opened{named}. "
        "Save its state dict alone, with torch.save or as .safetensors, and use that."
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
    for _ in range(_DEEPEST):
        inner = {key: content[key] for key in WRAPPERS if isinstance(content, Mapping) and key in content}
        key = next((key for key, value in inner.items() if _holds_weights(value)), None)
        if key is None:
            break
        wrapper, content = key, inner[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; expected a state dict, bare or under {', '.join(WRAPPERS)}.")
    prefix = _common_prefix(tensors)
    return wrapper, {name.removeprefix(prefix): _dense(path, name, value) for name, value in tensors.items()}


def _holds_weights(value: Any) -> bool:
    """Whether it is a state dict, or a wrapper around one."""
    return isinstance(value, Mapping) and any(
        isinstance(item, Tensor) or (key in WRAPPERS and isinstance(item, Mapping)) for key, item in value.items()
    )


def _common_prefix(names: Iterable[str]) -> str:
    """What wrappers of modules put before every name."""
    names, prefix = list(names), ""
    while more := next((each for each in _PREFIXES if all(n.startswith(prefix + each) for n in names)), ""):
        prefix += more
    return prefix


def _dense(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_complex():
        raise CheckpointError(f"{path}: {name} is a meta, sparse or complex tensor; expected plain numbers.")
    return tensor

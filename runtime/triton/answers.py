# SPDX-License-Identifier: Apache-2.0
"""What is sent to a server and what comes back, whichever way they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError, ServerError

IMAGE = "image"
_CLASSES = ("scores", "class_ids", "labels")


@dataclass(frozen=True)
class ClassScore:
    """A class and its softmax score, from 0 to 1."""

    label: str
    class_id: int
    score: float


@dataclass(frozen=True)
class Classification:
    """What an image shows.

    Attributes:
        classes: the best ones, best first; () where there is an error.
        error: why the server refused the image, or why its file cannot be read; "" otherwise.
    """

    classes: tuple[ClassScore, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the server tells of it: Triton's name of its type, and its shape with -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}, {self.datatype} {list(self.shape)}"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives."""

    model: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Signature:
        """From the answer to a request for a model's metadata; gRPC's JSON has 64-bit numbers as text."""
        inputs, outputs = (
            tuple(
                TensorInfo(each["name"], each["datatype"], tuple(int(size) for size in each.get("shape", ())))
                for each in metadata.get(kind, ())
            )
            for kind in ("inputs", "outputs")
        )
        return cls(metadata["name"], inputs, outputs)


@dataclass(frozen=True)
class ModelState:
    """A version of a model in the server's repository; `reason` says why it is not ready, if it is not."""

    name: str
    version: str
    state: str
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.state == "READY"


@dataclass(frozen=True)
class Tensor:
    """An input of a request; `data` has the type that `datatype` says."""

    name: str
    datatype: str
    data: npt.NDArray[Any]


class Refused(Exception):  # noqa: N818 - never leaves the client
    """The server answered that it does not do what it was asked for, and why."""


def models_of_index(answer: Mapping[str, Any] | Sequence[Mapping[str, str]]) -> tuple[ModelState, ...]:
    """From the answer to a request for the repository's index: rows, with gRPC in an object."""
    rows = answer.get("models", ()) if isinstance(answer, Mapping) else answer
    return tuple(
        ModelState(
            row["name"], row.get("version", ""), row.get("state") or "UNAVAILABLE", first_line(row.get("reason", ""))
        )
        for row in rows
    )


def unknown_model(model: str, target: str, models: Sequence[ModelState]) -> ServerError:
    """Says which models there are, or what keeps this one from being ready."""
    for each in models:
        if each.name == model and not each.ready:
            return ServerError(f"model {model} at {target} is not ready: {each.reason or each.state}.")
    names = list(dict.fromkeys(each.name for each in models if each.ready))
    there = f"it serves {', '.join(names)}" if names else "it has no model that is ready"
    return ServerError(f"there is no model {model} at {target}; {there}.")


def check_classifies(signature: Signature) -> None:
    """ServerError if the model does not take encoded images and give classes."""
    model = signature.model
    if not any(each.name == IMAGE and each.datatype == "BYTES" for each in signature.inputs):
        taken = "; ".join(map(str, signature.inputs))
        raise ServerError(
            f"model {model} takes no encoded image but {taken}; serve its ensemble, or send it arrays by Client.infer."
        )
    given = [each.name for each in signature.outputs]
    if missing := [name for name in _CLASSES if name not in given]:
        raise ServerError(
            f"model {model} does not classify: it gives {', '.join(given)}, without {missing[0]}; Client.infer returns "
            "the arrays of a model."
        )


def image_tensors(signature: Signature, image: bytes | Path) -> tuple[Tensor, ...]:
    """A request of one image, with a batch of one where the model has batches; OSError if the file cannot be read."""
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    rank = next(len(each.shape) for each in signature.inputs if each.name == IMAGE)
    # Filled in place: np.array would make a fixed-width string of the bytes and cut zeros from its end.
    array = np.empty((1,) * rank, np.object_)
    array.fill(data)
    return (Tensor(IMAGE, "BYTES", array),)


def classification_of(outputs: Mapping[str, npt.NDArray[Any]], top: int) -> Classification:
    """From the arrays of a request of one image: float32 scores, int64 class ids and labels of k classes each."""
    rows = zip(*(outputs[name].reshape(-1)[:top].tolist() for name in _CLASSES), strict=True)
    return Classification(
        tuple(ClassScore(label.decode("utf-8", "replace"), number, score) for score, number, label in rows)
    )


def batch_tensors(signature: Signature, batch: npt.NDArray[Any], datatype: str | None) -> tuple[Tensor, ...]:
    """A request of one array; InputError if the model takes another type or shape, or several inputs."""
    if len(signature.inputs) != 1:
        raise InputError(f"model {signature.model} takes {len(signature.inputs)} inputs; infer sends one.")
    (wanted,) = signature.inputs
    fits = len(wanted.shape) == batch.ndim and all(
        size in (-1, got) for size, got in zip(wanted.shape, batch.shape, strict=True)
    )
    if datatype != wanted.datatype or not fits:
        raise InputError(f"model {signature.model} takes {wanted}; got {batch.dtype} {list(batch.shape)}.")
    return (Tensor(wanted.name, wanted.datatype, batch),)


def check_top(top: int) -> None:
    """InputError unless at least one class is asked for."""
    if top < 1:
        raise InputError(f"top must be at least 1; got {top}.")


def check_timeout(timeout: float) -> None:
    """InputError unless a request may take some time."""
    if not timeout > 0:
        raise InputError(f"the timeout must be above 0 seconds; got {timeout:g}.")


def unreadable(error: OSError) -> str:
    """Why a file cannot be read."""
    return f"cannot be read: {error.strerror or error}"


def one_line(text: str) -> str:
    """A server's message without its line breaks."""
    return " ".join(text.split())


def first_line(text: str) -> str:
    """A reason without the traceback that follows it."""
    return one_line(text.strip().partition("\n")[0])

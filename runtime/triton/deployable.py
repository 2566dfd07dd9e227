# SPDX-License-Identifier: Apache-2.0
"""What a repository has to know of one export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError

from ...artifacts import ModelSpec, Precision
from ...errors import InputError
from .curve import Curve

ONNX = "model.onnx"
PLAN = "model.plan"
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT64: "INT64",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output: Triton's name of its type, and its sizes, -1 for any."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class OnnxFile:
    """Of an .onnx file: its image input and its outputs, the batch among their sizes.

    Attributes:
        beside: files beside it that weights lie in, sorted.
    """

    image: Tensor
    outputs: tuple[Tensor, ...]
    beside: tuple[str, ...]


@dataclass(frozen=True)
class Deployable:
    """An export as it is to be served.

    Attributes:
        name: of the model in the repository.
        files: what a version's folder holds of the model, by the names they get there.
        input, outputs: sizes without the batch.
        max_batch: images that one request, and one batch, may have.
        engines: what the manifests say of the engines, by file; each is for another compute capability.
        manifest: of the export, kept beside the model.
        labels: names of the classes; () if there are none.
        photograph: an encoded image, and the same as the model's input in the type of its file (C, H, W), to warm up.
    """

    name: str
    spec: ModelSpec
    precision: Precision
    backend: Literal["tensorrt", "onnxruntime", "python"]
    files: Mapping[str, Path]
    input: Tensor
    outputs: tuple[Tensor, ...]
    max_batch: int
    curve: Curve
    manifest: Mapping[str, Any]
    labels: tuple[str, ...]
    photograph: tuple[bytes, bytes]
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def classifies(self) -> bool:
        """Whether it gives classes; stage maps otherwise."""
        return not self.spec.features

    @property
    def plans(self) -> dict[str, str]:
        """Engines by compute capability, for instance {"9.0": "model.plan"}."""
        return {capability(engine): file for file, engine in self.engines.items()}


def capability(engine: Mapping[str, Any]) -> str:
    """The compute capability that an engine is for, as Triton writes it: "9.0"."""
    major, minor = divmod(int(engine["architecture"]), 10)
    return f"{major}.{minor}"


def onnx_file(path: Path) -> OnnxFile:
    """What a repository has to know of an .onnx file.

    Raises:
        InputError: it is no such file, or takes something else than images.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as error:
        raise InputError(f"{path} is no ONNX file: {error}.") from error
    inputs = [_tensor(value) for value in graph.input]
    if len(inputs) != 1:
        raise InputError(f"{path} takes {len(inputs)} inputs; a model to be served takes one batch of images.")
    beside = {each.value for tensor in graph.initializer for each in tensor.external_data if each.key == "location"}
    return OnnxFile(inputs[0], tuple(_tensor(value) for value in graph.output), tuple(sorted(beside)))


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dims = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim)
    if kind.elem_type not in _TYPES:
        raise InputError(f"{value.name} is of a type that is not served, ONNX's number {kind.elem_type}.")
    return Tensor(value.name, _TYPES[kind.elem_type], dims)

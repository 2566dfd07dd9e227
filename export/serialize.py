# SPDX-License-Identifier: Apache-2.0
"""Graphs as files: one .onnx, and beside it the weights where they are large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .embed import content, embedded_pieces

LARGEST = 256 * 2**20
"""Bytes of weights up to which they go into the .onnx file itself; protobuf would hold 2 GiB.

Runtimes map weights that lie beside the graph, where for those inside they hold the file and a copy as well:
measured on 0.8 GB, ONNX Runtime needs 1.2 GB to open it instead of 1.9, OpenVINO 1.1 s instead of 4.5.
"""
WEIGHTS = ".data"
"""How the names of files end that hold weights alone: beside a graph, or eager's."""
_SMALL = 1024
"""Bytes up to which a constant always stays in the graph: shapes and indices that a reader needs to infer types."""
_PAGE = 4096


@dataclass(frozen=True)
class ModelFile:
    """A model as it is written.

    Attributes:
        graph: content of the .onnx file, but for `weights`.
        weights: what the graph refers to in a file beside it, by name and in order; where they can be, they are
            views of the model's own memory, and need not be contiguous.
        name: of the .onnx file, by which the graph finds its weights.
        embedded: whether the weights go into the .onnx file itself when it is written.
    """

    graph: bytes
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    name: str = "model.onnx"
    embedded: bool = False

    def write(self, path: Path) -> None:
        """Write `path`, whose name must be `name`, and, where there are weights to go beside the graph, `path`.data."""
        if self.embedded:
            with path.open("wb") as file:
                file.writelines(embedded_pieces(self.graph, self.weights))
            return
        path.write_bytes(self.graph)
        if not self.weights:
            return
        with data_path(path).open("wb") as file:
            for offset, array in zip(_offsets(self.weights), self.weights.values(), strict=True):
                file.seek(offset)
                file.write(content(array))


def data_path(path: Path) -> Path:
    """Where the large weights of the .onnx file at `path` lie, if they are not in it."""
    return path.with_name(f"{path.name}{WEIGHTS}")


def serialize(model: ir.Model, name: str = "model.onnx", largest: int = LARGEST) -> ModelFile:
    """Serialise a model that will be written as `name`; the model is left as it is."""
    if _size(model) <= largest:
        return ModelFile(ir.to_proto(model).SerializeToString(), name=name)
    return apart(model, name, largest)


def apart(model: ir.Model, name: str = "model.onnx", largest: int = LARGEST, *, undisturbed: bool = False) -> ModelFile:
    """Likewise without a copy of the weights, which protobuf would make two of: they stay the model's own.

    The file is the same, byte for byte.

    Args:
        undisturbed: no other thread looks at the model meanwhile, so that its nodes need not be copied either.
    """
    if not undisturbed:
        return taken_apart(model.clone(), name, largest)
    weights = list(_tensors(model))
    try:
        return taken_apart(model, name, largest)
    finally:
        for value, tensor in weights:
            value.const_value = tensor


def taken_apart(model: ir.Model, name: str = "model.onnx", largest: int = LARGEST) -> ModelFile:
    """Likewise of a model that nobody needs afterwards: its weights are taken out of it."""
    embedded = _size(model) <= largest
    outside = [(value, tensor) for value, tensor in _tensors(model) if tensor.nbytes > _SMALL]
    weights = {str(value.name): tensor.numpy() for value, tensor in outside}
    for (value, tensor), offset in zip(outside, _offsets(weights), strict=True):
        location, shape = data_path(Path(name)).name, ir.Shape(weights[str(value.name)].shape)
        value.const_value = ir.ExternalTensor(
            location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=str(value.name)
        )
    return ModelFile(ir.to_proto(model).SerializeToString(), weights, name, embedded)


@contextmanager
def readable(model: ir.Model) -> Iterator[ModelFile | Path]:
    """What a runtime can read inside the block of a model that nobody needs afterwards.

    Where its weights lie on disk (`left_on_disk`), that is a graph beside them, so that they are mapped and not copied.
    """
    folders = {str(tensor.base_dir) for _, tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)}
    if len(folders) != 1:
        yield taken_apart(model)
        return
    path = Path(folders.pop()) / f"{uuid4().hex}.onnx"
    try:
        path.write_bytes(ir.to_proto(model).SerializeToString())
        yield path
    finally:
        path.unlink(missing_ok=True)


def left_on_disk(models: Iterable[ir.Model], path: Path) -> None:
    """Have models let go of the weights that lie beside the graph at `path`, and read them from there if asked.

    Args:
        models: the one that was written, and others that share some of its tensors; changed in place.
        path: of the .onnx file; nothing is done if its weights are inside.
    """
    if not data_path(path).exists():
        return
    written, *others = models
    stored = {str(value.name): tensor for value, tensor in _tensors(ir.load(path))}
    held = {id(tensor): stored[str(value.name)] for value, tensor in _tensors(written)}
    held = {key: tensor for key, tensor in held.items() if isinstance(tensor, ir.ExternalTensor)}
    for model in (written, *others):
        for value, tensor in list(_tensors(model)):
            value.const_value = held.get(id(tensor), tensor)


def let_go(model: ir.Model) -> None:
    """Take the weights out of a model that nobody needs any more.

    Onnxscript's pattern matchers remember the last graph that they saw, which would keep them in memory.
    """
    for value, _ in list(_tensors(model)):
        value.const_value = None


def skeleton(file: ModelFile) -> onnx.ModelProto:
    """The graph with its large weights as inputs: all that a check of types and shapes needs, of any size."""
    model = onnx.ModelProto()
    model.ParseFromString(file.graph)
    kept = []
    for tensor in model.graph.initializer:
        if tensor.name in file.weights:
            typed = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(typed)
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _size(model: ir.Model) -> int:
    """Bytes of weights."""
    return sum(tensor.nbytes for _, tensor in _tensors(model))


def _tensors(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value, value.const_value


def _offsets(weights: dict[str, NDArray[Any]]) -> list[int]:
    """Where each array begins in the file of weights: on pages, so that readers can map them."""
    sizes = [-(-array.nbytes // _PAGE) * _PAGE for array in weights.values()]
    return [int(end) for end in np.cumsum([0, *sizes])[:-1]]

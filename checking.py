# SPDX-License-Identifier: Apache-2.0
"""A delivered file held against eager PyTorch once more, as its export did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from google.protobuf.message import DecodeError
from torch import nn

from . import remarks
from .artifacts import Arithmetic, Converted, Lowered, ModelSpec, ParityReport, Precision, Target
from .calibration.images import ImageSet, load_images
from .delivered import eager_model, file_of, read_manifest, read_spec
from .errors import InputError
from .export.serialize import ModelFile, data_path
from .models.checkpoints import sha256_of
from .options import ExportOptions
from .output import MANIFEST
from .progress import Progress
from .proving import File, Judge, Way, as_written, judge_of, prove
from .quantizing import DELIVERED, FOR_TENSORRT
from .runtime import onnxruntime
from .runtime.session import OpenSession, Session
from .runtime.tensorrt import target as tensorrt
from .runtime.tensorrt.environment import environment
from .runtime.tensorrt.loading import load
from .runtime.tensorrt.told import Told, read_told

_NEEDED = ("precision", "outputs", "target", "graphs", "versions")


@dataclass(frozen=True)
class Delivered:
    """One file of an output folder, and what the manifest says of it.

    Attributes:
        path: of the file: a graph, or an engine.
        source: of the graph: the file itself, or that which the engine was built from.
        manifest: of the folder.
    """

    path: Path
    source: Path
    spec: ModelSpec
    manifest: dict[str, Any]

    @property
    def precision(self) -> Precision:
        """That the export was asked for."""
        precision: Precision = self.manifest["precision"]["requested"]
        return precision

    @property
    def is_engine(self) -> bool:
        """Whether TensorRT runs it."""
        return self.path != self.source

    @property
    def literal(self) -> bool:
        """Whether its Q/DQ pairs are for another target than this machine's processor."""
        return self.source.name == FOR_TENSORRT

    @property
    def engine(self) -> Told:
        """How the engine was built."""
        return read_told(self.manifest["tensorrt"])

    @property
    def arithmetic(self) -> Arithmetic:
        """That the file computes in: an engine of float32 may multiply in TF32."""
        if self.precision != "fp32" or not self.is_engine:
            return self.precision
        return tensorrt.plain_arithmetic(self.engine.options, self.engine.architecture)


def find_delivered(folder: Path, name: str, progress: Progress) -> Delivered:
    """A file of an output folder; notes where it is not what was exported.

    Raises:
        InputError: the folder is none of this tool's, or holds no such file.
        MissingDependencyError: it is an engine, and TensorRT or a GPU is not there.
    """
    manifest, spec, path = read_manifest(folder), read_spec(folder), file_of(folder, name)
    if missing := [each for each in _NEEDED if each not in manifest]:
        raise InputError(f"{folder / MANIFEST} is damaged ({missing[0]!r}); export the model again.")
    source = path
    if path.suffix == tensorrt.PLAN:
        environment()
        if not manifest.get("tensorrt"):
            raise InputError(f"{folder / MANIFEST} says nothing of {name}; metaformer-export build {folder} makes one.")
        told = read_told(manifest["tensorrt"])
        if told.path != name:
            raise InputError(f"{folder / MANIFEST} tells of {told.path}, not of {name}; give --file {told.path}.")
        source = file_of(folder, told.source)
    for each in dict.fromkeys((path, source, data_path(source))):
        known = manifest["outputs"].get(each.name)
        if known is None or not each.is_file():
            continue
        with progress.step(f"sha256 of {each.name}"):
            same = sha256_of(each) == known["sha256"]
        if not same:
            progress.note(f"{each} is not as it was exported: its sha256 is another than in {MANIFEST}.")
    return Delivered(path, source, spec, manifest)


def check_again(delivered: Delivered, checkpoint: Path | None, images: Path | None, progress: Progress) -> ParityReport:
    """Whether the file computes what eager PyTorch computes, by the export's own judge.

    Args:
        checkpoint: the weights that were exported; None for random ones.
        images: a folder; None for the photographs that come with the package.

    Raises:
        InputError: the file is damaged, or images or checkpoint cannot be used.
        ParityError: its outputs have other shapes than eager's.
        EngineError: the engine is of another TensorRT or GPU.
    """
    module, shown = load_eager(delivered, checkpoint, images, progress)
    graph = load_graph(delivered.source)
    lowered = Lowered(delivered.spec, graph, "")
    judge = judge_of(module, lowered, shown)
    if delivered.is_engine:
        with readable(delivered.source):
            return _engine_parity(delivered, lowered, judge, progress)
    target: Target = delivered.manifest["target"] if delivered.path.name == DELIVERED else "onnx"
    options = ExportOptions(precision=delivered.precision, target=target)
    converted = Converted(delivered.spec, graph, "", delivered.precision)
    with readable(delivered.path):
        return prove(
            (File(delivered.path, lowered, converted, delivered.literal),), (), judge, options, progress
        ).report


def load_eager(
    delivered: Delivered, checkpoint: Path | None, images: Path | None, progress: Progress
) -> tuple[nn.Module, ImageSet]:
    """The model that was exported, in eval mode, and images for it.

    Raises:
        InputError: the model needs its checkpoint, or images or checkpoint cannot be used.
    """
    with progress.stage("load") as done:
        spec = delivered.spec
        module = eager_model(spec, checkpoint)
        if module is None:
            raise InputError(
                f"{delivered.path.parent} was exported from {spec.weights}, without which there is nothing to compare "
                "with; give it with --checkpoint FILE."
            )
        shown = load_images(images, spec)
        done(f"{spec.name}, {spec.image_size[0]}x{spec.image_size[1]}, {shown.source}")
    return module, shown


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what ONNX Runtime raises for a file that it cannot run into an InputError that names the file."""
    try:
        yield
    except onnxruntime.LOAD_ERRORS as error:
        raise InputError(f"{path} cannot be run by ONNX Runtime on the CPU: {str(error).splitlines()[0]}") from error


def load_graph(path: Path) -> ir.Model:
    """An .onnx file, whose large weights stay on disk until they are read; InputError if it is none."""
    try:
        return ir.load(path)
    except (DecodeError, OSError, ValueError) as error:
        raise InputError(f"{path} is no ONNX file, or it is damaged ({error}); export the model again.") from error


def engine_opener(delivered: Delivered) -> OpenSession:
    """What opens the engine itself, and of graphs engines that are built as it was."""
    told = delivered.engine
    build = tensorrt.opener(told.options, told.batch)

    def open_session(model: ModelFile | Path, *, threads: int, at_once: int = 1) -> Session:
        if model == delivered.path:
            return load(delivered.path, delivered.manifest["tensorrt"], delivered.spec.outputs)
        return build(model, threads=threads, at_once=at_once)

    return open_session


def _engine_parity(delivered: Delivered, lowered: Lowered, judge: Judge, progress: Progress) -> ParityReport:
    """Of the engine; how far it is from ONNX Runtime is told as well, where that runs the file."""
    way = Way(lambda: delivered.path, lambda: lowered.model, engine_opener(delivered))
    converted = Converted(delivered.spec, lowered.model, "", delivered.precision)
    file, beside = File(delivered.source, lowered, converted, delivered.literal), {}
    if delivered.precision != "bf16":
        beside = {file.name_in(onnxruntime.NAME): as_written(file)}
    with progress.stage("parity") as done:
        name = f"{delivered.path.name} in {tensorrt.NAME}"
        proof = judge.compare({name: way}, delivered.arithmetic, beside=beside, step=progress.step)
        done(remarks.parity_line(proof, not judge.spec.features))
    return proof

# SPDX-License-Identifier: Apache-2.0
"""Every form of the model in the wanted precision, and whether it computes what eager PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
from torch import nn

from . import remarks
from .artifacts import Arithmetic, Converted, Lowered, ModelSpec, OutOfRange, ParityReport, Precision
from .calibration.images import ImageSet
from .calibration.quantize import Ranges
from .export.graph import is_gelu_by_tanh
from .export.lower import check
from .export.precision import convert, out_of_range
from .export.serialize import ModelFile, apart, data_path, left_on_disk, skeleton
from .options import ExportOptions
from .progress import Progress, Step, untold
from .quantizing import DELIVERED, quantized_graphs
from .runtime import clustering_parity, onnxruntime, openvino, parity
from .runtime.clustering import Clusterings, EagerDecisions, decisions
from .runtime.observe import largest_magnitudes, rounded
from .runtime.saturation import weight_bits
from .runtime.session import OpenSession, Session
from .runtime.threads import available_threads
from .runtime.together import Begin, together, when_asked

_BATCHES_AT_ONCE = 2
"""In sessions that are not timed: two keep two cores busy, and there are two batches of three images."""
FOR_PLUGINS = "model.plugin.onnx"
_FILES = {"portable": DELIVERED, "openvino": DELIVERED, "plugin": FOR_PLUGINS}
_LITERALLY = partial(onnxruntime.open_session, literal=True)
_BY_ITSELF: frozenset[Precision] = frozenset({"fp32", "int8"})
"""Precisions in which ONNX Runtime computes what the file says: what it has in float32 and in eight bits."""


@dataclass(frozen=True)
class File:
    """One graph of the output folder, written at `path`, and that file is what is proved and timed; only bfloat16
    is proved by its rounded graph, because ONNX Runtime's CPU cannot run it, and by itself in OpenVINO.

    Attributes:
        literal: it is quantised for another target, whose sums no processor here makes: it is proved in float
            arithmetic between its Q/DQ pairs.
        plain: the float32 form that it is to be faster than, where that is another than the one it was made from.
    """

    path: Path
    lowered: Lowered
    converted: Converted
    literal: bool = False
    plain: Lowered | None = None

    @property
    def float_form(self) -> Lowered:
        """What it is compared with."""
        return self.lowered if self.plain is None else self.plain

    @property
    def name(self) -> str:
        """Of the .onnx file."""
        return self.path.name

    @property
    def large(self) -> bool:
        """Whether only one session of it is opened at a time: its weights lie beside the graph."""
        return data_path(self.path).exists()

    @property
    def at_once(self) -> int:
        """How many sessions are opened at once, on threads of their own, because opening one keeps a single core busy
        for seconds; of a large file, none.
        """
        return 0 if self.large else available_threads()

    @property
    def batches_at_once(self) -> int:
        """How many batches a session computes at once where it is not timed; of a large file, one, to save memory."""
        return 1 if self.large else min(_BATCHES_AT_ONCE, available_threads())

    def name_in(self, runtime: str) -> str:
        """What the way to run the file in that runtime is called."""
        return f"{self.name} in {runtime}"


@dataclass(frozen=True)
class Way:
    """One way to run a file: its content, the graph that runs, both made when they are needed, and what runs it.

    Attributes:
        opened: what has its session, if somebody else opens it.
        at_once: batches that its session computes side by side; for one that is timed it is 1.
    """

    data: Callable[[], ModelFile | Path]
    graph: Callable[[], ir.Model]
    load: OpenSession = onnxruntime.open_session
    opened: Callable[[], Session] | None = None
    at_once: int = 1

    def open(self) -> Session:
        """The session that it is given, or a new one with all threads."""
        if self.opened is not None:
            return self.opened()
        return self.load(self.data(), threads=available_threads(), at_once=self.at_once)


@dataclass(frozen=True)
class Judge:
    """Holds ways to run a model against eager; what eager computes, it computes once."""

    spec: ModelSpec
    images: ImageSet
    decide: EagerDecisions
    clusters: bool

    def compare(
        self,
        ways: Mapping[str, Way],
        precision: Arithmetic,
        *,
        beside: Mapping[str, Way] | None = None,
        begin: Begin = when_asked,
        at_once: int = 1,
        out_of_range: tuple[OutOfRange, ...] = (),
        own: bool = True,
        step: Step = untold,
    ) -> ParityReport:
        """The worst of all ways, by name, within the limits of the precision.

        Args:
            precision: or TF32, whose limits are other ones.
            beside: what runs the same, not judged; the report says how far it is from the others.
            begin: opens graphs with clusterings laid open.
            at_once: batches that these compute side by side.
            own: tell how far the first one's own clusters agree, too, as `clustering_parity.weigh` does.
            step: told of each way.
        """
        threads, classifier = available_threads(), not self.spec.features
        openers: dict[str, parity.Opener] = {name: way.open for name, way in ways.items()}
        laid_open = {name: Clusterings(way.graph, threads, way.load, at_once) for name, way in ways.items()}
        clusterings = {name: begin(each.open) for name, each in laid_open.items() if self.clusters}
        proof = parity.compare(
            self.decide.outputs,
            openers,
            self.images,
            precision,
            self.spec.outputs,
            classifier=classifier,
            out_of_range=out_of_range,
            beside={name: way.open for name, way in (beside or {}).items()},
            step=step,
        )
        if not self.clusters:
            return proof
        return clustering_parity.weigh(
            proof, self.decide, clusterings, self.images, classifier=classifier, own=own, step=step
        )


@dataclass(frozen=True)
class Proved:
    """How an export compares with eager.

    Attributes:
        ways: to run the delivered file, by name; unless it is large, their sessions are still open.
    """

    report: ParityReport
    ways: Mapping[str, Way]


def judge_of(model: nn.Module, lowered: Lowered, images: ImageSet) -> Judge:
    """The judge of a model and of all that is made of its lowered graph."""
    return Judge(lowered.spec, images, EagerDecisions(model), bool(decisions(lowered.model.graph)))


def written(
    lowered: tuple[Lowered, ...],
    images: ImageSet,
    folder: Path,
    options: ExportOptions,
    progress: Progress,
    *,
    ranges: Ranges | None = None,
    plain: Lowered | None = None,
    keep: Mapping[str, str] | None = None,
) -> tuple[tuple[File, ...], tuple[OutOfRange, ...]]:
    """Every form in the wanted precision, written to `folder`, and what float16 could not hold.

    Args:
        ranges: of the first form, for INT8.
        plain: what INT8 is to be faster than, if that is not the first form.
        keep: modules that stay in high precision, with the reason.
    """
    with progress.stage("convert") as done:
        if ranges is not None:
            files = _quantised(lowered[0], ranges, keep or {}, images, folder, options, done)
            return tuple(replace(each, plain=plain) for each in files), ()
        peaks: tuple[dict[str, float], ...] = ({},) * len(lowered)
        if options.precision == "fp16":
            peaks = tuple(largest_magnitudes(each, images.batch, available_threads()) for each in lowered)
        beyond = out_of_range(lowered[0], peaks[0])
        files = tuple(
            _write(
                folder / _FILES[each.form],
                each,
                convert(each, options.precision, max_abs=peak, io=options.io, keep=keep),
            )
            for each, peak in zip(lowered, peaks, strict=True)
        )
        kept = sum(len(each.ops) for each in files[0].converted.kept)
        done(f"{options.precision}, {kept} nodes kept in float32, ONNX checked")
    return files, beyond


def _quantised(
    lowered: Lowered,
    ranges: Ranges,
    keep: Mapping[str, str],
    images: ImageSet,
    folder: Path,
    options: ExportOptions,
    done: Callable[[str], None],
) -> tuple[File, ...]:
    graphs = quantized_graphs(lowered, ranges, images, options.target, keep)
    files = tuple(
        _write(folder / name, lowered, converted, literal=name != DELIVERED) for name, converted in graphs.items()
    )
    eight = sum(counts.get("int8", 0) for counts in files[0].converted.layers.values())
    kept = sum(len(each.ops) for each in files[0].converted.kept)
    approximate = sum(map(is_gelu_by_tanh, files[0].converted.model.graph))
    by_tanh = f"{approximate} GELUs by tanh, " if approximate else ""
    done(f"int8 in {eight} layers, {kept} kept in float32, {weight_bits()} bits of weights, {by_tanh}ONNX checked")
    return files


def prove(
    files: tuple[File, ...], beyond: tuple[OutOfRange, ...], judge: Judge, options: ExportOptions, progress: Progress
) -> Proved:
    """How all files compare with eager."""
    timed = {files[0].name_in(runtime) for runtime in (onnxruntime.NAME, openvino.NAME)}
    with progress.stage("parity") as done, together(files[0].at_once) as begin:
        at_once = files[0].batches_at_once
        ways = {
            name: way if name in timed else replace(way, at_once=at_once) for name, way in _ways(files, options).items()
        }
        ways = {name: replace(way, opened=begin(way.open)) for name, way in ways.items()}
        proof = judge.compare(
            ways, options.precision, begin=begin, at_once=at_once, out_of_range=beyond, step=progress.step
        )
        done(remarks.parity_line(proof, not judge.spec.features))
    return Proved(proof, {name: way for name, way in ways.items() if name in timed})


def _write(path: Path, lowered: Lowered, converted: Converted, *, literal: bool = False) -> File:
    content = apart(converted.model, path.name, undisturbed=True)
    check(skeleton(content))
    content.write(path)
    left_on_disk((converted.model, lowered.model), path)
    return File(path, lowered, converted, literal)


def _ways(files: tuple[File, ...], options: ExportOptions) -> dict[str, Way]:
    """Ways to run the files on this machine, all of which must agree with eager."""
    ways = {}
    for file in files:
        if options.precision != "bf16":  # ONNX Runtime's CPU cannot run it
            ways[file.name_in(onnxruntime.NAME)] = as_written(file)
        if options.precision not in _BY_ITSELF or file.literal:
            low = "float16" if file.literal else options.precision
            way = made_by(partial(rounded, file.converted))
            ways[f"{file.name}, every tensor rounded to {low}"] = replace(way, load=as_written(file).load)
    if options.target == "openvino":
        ways[files[0].name_in(openvino.NAME)] = replace(
            as_written(files[0]), load=partial(openvino.open_session, batch=options.batch.only)
        )
    return ways


def as_written(file: File) -> Way:
    """The file itself."""
    load = _LITERALLY if file.literal else onnxruntime.open_session
    return Way(lambda: file.path, lambda: file.converted.model, load)


def made_by(model: Callable[[], ir.Model]) -> Way:
    """A graph that is in no file."""
    return Way(lambda: apart(model()), model)

# SPDX-License-Identifier: Apache-2.0
"""The stage that builds an engine: which file from, whether TensorRT can take it, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from .errors import EngineError, MissingDependencyError
from .export.ops.compiling import can_compile_for
from .export.ops.mixer_op import DOMAIN
from .options import ExportOptions
from .progress import Progress
from .proving import FOR_PLUGINS
from .quantizing import FOR_TENSORRT
from .runtime import bench
from .runtime.tensorrt import environment as tensorrt
from .runtime.tensorrt.building import Batch, Built, build
from .runtime.tensorrt.engine import Engine, EngineReport
from .runtime.tensorrt.inspecting import examine, information, unexamined
from .runtime.tensorrt.lint import Finding, lint
from .runtime.tensorrt.loading import refit
from .runtime.tensorrt.plugins import kernel_architecture
from .runtime.tensorrt.session import Session, session_of
from .runtime.tensorrt.support import check_support

PLAN = "model.plan"
_WHOLE = 100
_RUNS = 20
"""Timed runs of each of two engines, in turns of `_TURN`."""
_TURN = 5


@dataclass(frozen=True)
class Source:
    """An .onnx file that an engine can be built from, and the graph in it."""

    path: Path
    model: ir.Model

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def plugins(self) -> tuple[str, ...]:
        """Mixer ops of the graph, each once."""
        return tuple(dict.fromkeys(node.op_type for node in self.model.graph if node.domain == DOMAIN))


@dataclass(frozen=True)
class _Made:
    """An engine that is in memory only, loaded."""

    source: Source
    built: Built
    session: Session
    findings: tuple[Finding, ...]


def wants_engine(options: ExportOptions) -> bool:
    """Whether an engine is to be built: asked for, or `auto` where TensorRT and a GPU are."""
    return options.target == "tensorrt" or (options.target == "auto" and tensorrt.available())


def build_engine(files: Sequence[Source], options: ExportOptions, folder: Path, progress: Progress) -> Engine:
    """Build model.plan in `folder` from the file that is for TensorRT.

    Where a model has mixer ops and nobody said how they are to be lowered, an engine with plugins and one of
    standard operators are built, timed side by side on the GPU, and the faster one is kept; for a TensorRT whose
    plugins need Python at run time, or a GPU that the kernels are too new for, the one of standard operators alone.

    A file from which none can be built is left out with a note, as long as there is another.

    Raises:
        MissingDependencyError: TensorRT or a GPU is not there, or Triton for plugins.
        EngineError: TensorRT refuses all files, or builds no engine from any.
    """
    sources = _for_tensorrt(files, options, tensorrt.environment())
    with progress.stage("engine") as done:
        made, refused = _all_made(sources, options, progress)
        times = _timed(made, options.batch.usual) if len(made) > 1 else {}
        best = min(made, key=lambda each: times.get(each.source.name, 0.0))
        path = folder / PLAN
        path.write_bytes(best.built.plan)
        engine = _engine(best, path, options, times, refused)
        done(_said(engine))
    for text in (*refused, *best.built.notes, *engine.report.remarks, *warnings_of(best.findings)):
        progress.note(text)
    return engine


def warnings_of(findings: Sequence[Finding]) -> list[str]:
    """The first finding of every issue that may go wrong, and how many more there are of it."""
    found: dict[str, list[str]] = {}
    for each in findings:
        if each.severity == "warning":
            found.setdefault(each.issue, []).append(each.message)
    return [f"{first}{f' {len(others)} more like it.' if others else ''}" for first, *others in found.values()]


def _for_tensorrt(files: Sequence[Source], options: ExportOptions, found: tensorrt.Environment) -> list[Source]:
    """Files to build from: one, or that with plugins and that without."""
    by_name = {file.name: file for file in files}
    if (quantised := by_name.get(FOR_TENSORRT)) is not None:
        return [quantised]
    plain, other = files[0], by_name.get(FOR_PLUGINS)
    if other is None:
        return [plain]
    if options.lowering or not other.plugins:  # without plugins, it was lowered as somebody asked
        return [other]
    architecture = kernel_architecture(options.engine, found.architecture)
    can_carry_kernels = found.version >= tensorrt.AHEAD_OF_TIME and can_compile_for(architecture)
    return [other, plain] if options.plugins and can_carry_kernels else [plain]


def _all_made(sources: Sequence[Source], options: ExportOptions, progress: Progress) -> tuple[list[_Made], list[str]]:
    """An engine of every source that gives one, and why others give none."""
    made: list[_Made] = []
    refused: list[str] = []
    for number, source in enumerate(sources, 1):
        try:
            made.append(_made(source, options, progress))
        except (EngineError, MissingDependencyError) as error:
            if number == len(sources) and not made:
                raise
            refused.append(f"The engine is not of {source.name}: {error}")
    return made, refused


def _made(source: Source, options: ExportOptions, progress: Progress) -> _Made:
    batch, version = _batch(options), tensorrt.environment().version
    findings = lint(source.model, version, batch=batch)
    refused = [each.message for each in check_support(source.model, version, frozenset(source.plugins))]
    refused += [each.message for each in findings if each.severity == "error"]
    if refused:
        more = f" ({len(refused) - 1} more like it)" if len(refused) > 1 else ""
        raise EngineError(f"no engine can be built from {source.name}: {refused[0]}{more}")
    with progress.count(f"{source.name} to an engine", _WHOLE, unit="%") as told:
        reached = 0

        def stepped(phase: str, step: int, steps: int) -> None:
            nonlocal reached
            del phase
            share = _WHOLE * step // max(steps, 1)
            if share > reached:
                told(share - reached)
                reached = share

        built = build(source.path, options.engine, batch, plugins=source.plugins, told=stepped)
    session = session_of(
        built.plan,
        host_code=options.engine.version_compatible,
        cuda_graph=options.engine.cuda_graph,
        separate=bool(source.plugins),
        weight_streaming=options.engine.weight_streaming,
        outputs=tuple(str(each.name) for each in source.model.graph.outputs),
        refit=partial(refit, source=source.path) if options.engine.strip_plan else None,
    )
    # Its memory, its kernels and its recording: what fails there leaves another source.
    session.gpu_milliseconds(options.batch.usual, 1)
    return _Made(source, built, session, findings)


def _timed(made: list[_Made], batch: int) -> dict[str, float]:
    """Median GPU time of each, in milliseconds, in turns."""
    times: dict[str, list[float]] = {each.source.name: [] for each in made}
    for _ in range(_RUNS // _TURN):
        for each in made:
            times[each.source.name] += each.session.gpu_milliseconds(batch, _TURN)
    return {name: bench.median(each) for name, each in times.items()}


def _engine(
    best: _Made, path: Path, options: ExportOptions, times: Mapping[str, float], refused: Sequence[str]
) -> Engine:
    found = best.built.environment
    return Engine(
        path=path,
        source=best.source.name,
        version=found.version_text,
        gpu=found.gpu,
        architecture=found.architecture,
        plugins=best.source.plugins,
        batch=_batch(options),
        options=options.engine,
        seconds=best.built.seconds,
        report=_report(best, options.batch.usual),
        warnings=best.built.warnings,
        findings=(*refused, *(each.message for each in best.findings)),
        compared=dict(times),
        gpu_milliseconds={
            batch: bench.median(best.session.gpu_milliseconds(batch, _RUNS))
            for batch in sorted({options.batch.smallest, options.batch.usual})
        },
    )


def _report(best: _Made, batch: int) -> EngineReport:
    """What the engine's layers are; an engine is not lost over an inspector that says nothing readable."""
    try:
        text = information(best.session.engine, best.session.shaped_context(batch))
        return examine(text, best.source.model.graph)
    except EngineError as error:
        return unexamined(best.source.model.graph, str(error))


def _batch(options: ExportOptions) -> Batch:
    return options.batch.smallest, options.batch.usual, options.batch.largest


def _said(engine: Engine) -> str:
    """What came of it, in words."""
    report = engine.report
    counts = {name: report.counted(name) for name in ("int8", "fp16", "bf16", "fp32")}
    precision = ", ".join(f"{count} in {name}" for name, count in counts.items() if count)
    plugins = ", ".join(f"{count} {name}" for name, count in report.plugins.items())
    parts = [f"TensorRT {engine.version} on {engine.gpu}", f"{report.layers} layers, nodes {precision or 'unnamed'}"]
    parts += [f"plugins {plugins}"] if plugins else []
    parts += [report.conversions] if report.conversions else []
    parts += [f"batch {batch} {ms:.2f} ms on the GPU" for batch, ms in engine.gpu_milliseconds.items()]
    if engine.compared:
        parts.append("compared: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in engine.compared.items()))
    return ", ".join(parts)

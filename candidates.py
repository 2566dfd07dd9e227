# SPDX-License-Identifier: Apache-2.0
"""Ways to run the exported model on this machine: which there are, and which compute what eager computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from . import remarks
from .artifacts import Arithmetic, Candidate, ParityReport, Precision, Target
from .errors import InputError, MetaformerExportError
from .export.precision import float32_only
from .options import ExportOptions
from .progress import Progress, Step
from .proving import File, Judge, Proved, Way, as_written, made_by
from .runtime import onnxruntime, openvino
from .runtime.session import OpenSession, Session
from .runtime.tensorrt import target as tensorrt
from .runtime.tensorrt.engine import Engine
from .runtime.threads import available_threads
from .runtime.together import Begin, together, when_asked
from .timing import Stopwatch


@dataclass(frozen=True)
class Runtime:
    """One target's file, as data.

    Attributes:
        lowers: it runs a float32 file in bfloat16.
        compiles_for: one batch size; None for any.
    """

    name: str
    check: Callable[[Precision], None]
    load: OpenSession
    settings: Callable[[int], dict[str, str | int]]
    lowers: bool = False
    compiles_for: int | None = None


_ONNX_RUNTIME = Runtime(onnxruntime.NAME, onnxruntime.check, onnxruntime.open_session, onnxruntime.settings)


def _openvino(batch: int | None, hint: openvino.Hint = "f32") -> Runtime:
    """Compiled for the one batch size that the model is for, if there is one."""
    return Runtime(
        openvino.NAME,
        openvino.check,
        partial(openvino.open_session, hint=hint, batch=batch),
        partial(openvino.settings, hint=hint),
        lowers=hint == "bf16",
        compiles_for=batch,
    )


def _runtimes(target: Target, batch: int | None) -> tuple[Runtime, ...]:
    """On the host; an engine comes on top of them."""
    by_target: Mapping[Target, tuple[Runtime, ...]] = {
        "auto": (_ONNX_RUNTIME, _openvino(batch)),
        "onnx": (_ONNX_RUNTIME,),
        "openvino": (_openvino(batch),),
        "tensorrt": (),
    }
    return by_target[target]


@dataclass(frozen=True)
class _Plan:
    """A way to run the model that is not tried yet.

    Attributes:
        arithmetic: whose limits it is held to.
        proved: the export's own proof has it.
        refusal: why it cannot even be tried.
    """

    runtime: Runtime
    precision: Precision
    arithmetic: Arithmetic
    file: str
    way: Way
    proved: bool = False
    refusal: str = ""

    @property
    def is_engine(self) -> bool:
        """Whether TensorRT runs it, or builds it first: alone, on the main thread, which hears Ctrl-C."""
        return self.runtime.name == tensorrt.NAME


def judge_candidates(
    files: tuple[File, ...],
    engine: Engine | None,
    proved: Proved,
    judge: Judge,
    stopwatch: Stopwatch,
    options: ExportOptions,
    progress: Progress,
) -> tuple[tuple[Candidate, ...], ParityReport | None]:
    """Every way that the target has to run the delivered file, the first, or its engine, each held against eager by
    itself, and timed: all together, or, for a large file, each beside eager alone, so that one session at a time is in
    memory.

    A 16-bit file is joined by its float32 form, to compare with. Of an engine there is the report as well, with ONNX
    Runtime beside it.
    """
    candidates, file, of_engine = [], files[0], None
    plans = _plans(file, proved.ways, options)
    if engine is not None:
        plans += _engine_plans(engine, next(each for each in files if each.name == engine.source), options)
    with progress.stage("runtimes") as done:
        with together(file.at_once) as begin:
            beside = {name: way for name, way in proved.ways.items() if name == file.name_in(onnxruntime.NAME)}
            for plan in [_begun(each, begin) for each in plans]:
                delivers = plan.is_engine and bool(plan.file)
                others = beside if delivers else {}
                candidate, session, report = _tried(plan, file, proved.report, judge, others, begin, progress.step)
                candidates.append(candidate)
                of_engine = report if delivers else of_engine
                if session is not None:
                    stopwatch.take(candidate, session)
                if file.large:
                    del session  # the stopwatch lets go of it, too
                    stopwatch.time(progress.step)
        done(remarks.candidates_line(candidates))
    return tuple(candidates), of_engine


def _plans(file: File, proved: Mapping[str, Way], options: ExportOptions) -> list[_Plan]:
    delivered, float32 = as_written(file), made_by(lambda: file.float_form.model)
    plans = []
    for runtime in _runtimes(options.target, options.batch.only):
        if options.precision != "fp32":
            plans.append(_Plan(runtime, "fp32", "fp32", "", replace(float32, load=runtime.load)))
        known = proved.get(file.name_in(runtime.name))
        way = known or replace(delivered, load=runtime.load)
        precision = options.precision
        plans.append(_Plan(runtime, precision, precision, file.name, way, proved=known is not None))
    if options.target == "auto" and options.precision == "fp32":
        lowering = _openvino(options.batch.only, "bf16")
        plans.append(_Plan(lowering, "bf16", "bf16", file.name, replace(delivered, load=lowering.load)))
    return [replace(plan, refusal=_refusal(plan, file)) for plan in plans]


def _engine_plans(engine: Engine, source: File, options: ExportOptions) -> list[_Plan]:
    """The engine, and one of the float32 form to compare with where the file is in a lower precision."""
    runtime = Runtime(
        tensorrt.NAME,
        tensorrt.check,
        tensorrt.opener(engine.options, engine.batch, engine.told(), source.lowered.spec.outputs),
        lambda threads: tensorrt.settings(engine.options),
    )
    delivered = Way(lambda: engine.path, lambda: source.converted.model, runtime.load)
    plain = tensorrt.plain_arithmetic(engine.options, engine.architecture)
    plans = []
    if options.precision != "fp32":
        float32 = replace(made_by(lambda: source.float_form.model), load=runtime.load)
        plans.append(_Plan(runtime, "fp32", plain, "", float32))
    arithmetic = plain if options.precision == "fp32" else options.precision
    return [*plans, _Plan(runtime, options.precision, arithmetic, engine.path.name, delivered)]


def _refusal(plan: _Plan, file: File) -> str:
    try:
        plan.runtime.check(plan.precision)
        if plan.runtime.lowers:
            _check_lowering(file)
    except MetaformerExportError as error:
        return str(error)
    return ""


def _begun(plan: _Plan, begin: Begin) -> _Plan:
    """The plan, whose session is opened with others unless it is refused, or open already."""
    if plan.refusal or plan.proved or plan.is_engine:
        return plan
    return replace(plan, way=replace(plan.way, opened=begin(plan.way.open)))


def _tried(
    plan: _Plan,
    file: File,
    proof: ParityReport,
    judge: Judge,
    beside: Mapping[str, Way],
    begin: Begin,
    step: Step,
) -> tuple[Candidate, Session | None, ParityReport | None]:
    """A candidate, its session where it is to be timed (what the export's own proof rests on is in any case, and what
    the delivered file is compared with), and the report where it ran.
    """
    settings = plan.runtime.settings(available_threads())
    runtime = plan.runtime
    candidate = Candidate(
        runtime.name, plan.precision, plan.file, settings, passed=False, compiled_for=runtime.compiles_for
    )
    if plan.refusal:
        return replace(candidate, failures=(plan.refusal,)), None, None
    try:
        way = plan.way
        # Opened here, once; of a large file, clusterings laid open would be in the way.
        if plan.is_engine or (file.large and not judge.clusters):
            session = way.open()
            way = replace(way, opened=lambda: session)
        if not plan.proved:
            proof = judge.compare(
                {plan.runtime.name: way},
                plan.arithmetic,
                beside=beside,
                begin=when_asked if plan.is_engine else begin,
                at_once=file.batches_at_once,
                own=plan.is_engine,  # whose report is kept
                step=step,
            )
        session = way.open()
    except MetaformerExportError as error:
        return replace(candidate, failures=(str(error),)), None, None
    outputs = proof.same_clusters or proof.outputs
    candidate = replace(
        candidate,
        passed=proof.passed,
        rms_rel=max(output.rms_rel for output in outputs),
        cosine=min(output.cosine for output in outputs),
        failures=proof.failures,
    )
    compared = not plan.file  # what a file is to be faster than is timed though it may miss its own limits
    return candidate, session if proof.passed or plan.proved or compared else None, proof


def _check_lowering(file: File) -> None:
    """InputError if the hint would lower what a bfloat16 file keeps in float32."""
    kept = float32_only(file.lowered)
    if kept:
        raise InputError(
            f"OpenVINO would lower {' and '.join(kept)} too, which stays in float32; --bf16 makes a file that says so."
        )

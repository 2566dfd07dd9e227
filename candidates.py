# SPDX-License-Identifier: Apache-2.0
"""Ways to run the exported model on this machine: which there are, and which compute what eager computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from . import remarks
from .artifacts import Candidate, ParityReport, Precision, Target
from .errors import InputError, MetaformerExportError
from .export.precision import float32_only
from .options import ExportOptions
from .progress import Progress, Step
from .proving import File, Judge, Way, as_written, made_by
from .runtime import onnxruntime, openvino
from .runtime.ahead import Begin, ahead
from .runtime.session import OpenSession, Session
from .runtime.threads import available_threads
from .timing import Stopwatch


@dataclass(frozen=True)
class Runtime:
    """One target's file, as data."""

    name: str
    check: Callable[[Precision], None]
    load: OpenSession
    settings: Callable[[int], dict[str, str | int]]


_ONNX_RUNTIME = Runtime(onnxruntime.NAME, onnxruntime.check, onnxruntime.open_session, onnxruntime.settings)
_OPENVINO = Runtime(openvino.NAME, openvino.check, openvino.open_session, openvino.settings)
_LOWERING = replace(
    _OPENVINO, load=partial(openvino.open_session, hint="bf16"), settings=partial(openvino.settings, hint="bf16")
)
"""OpenVINO that runs a float32 file in bfloat16."""
_RUNTIMES: Mapping[Target, tuple[Runtime, ...]] = {
    "auto": (_ONNX_RUNTIME, _OPENVINO),
    "onnx": (_ONNX_RUNTIME,),
    "openvino": (_OPENVINO,),
}


@dataclass(frozen=True)
class _Plan:
    """A way to run the model that is not tried yet.

    Attributes:
        proved: the export's own proof has it.
        refusal: why it cannot even be tried.
    """

    runtime: Runtime
    precision: Precision
    file: str
    way: Way
    proved: bool = False
    refusal: str = ""


def judge_candidates(
    file: File, proof: ParityReport, judge: Judge, stopwatch: Stopwatch, options: ExportOptions, progress: Progress
) -> tuple[Candidate, ...]:
    """Every way that the target has to run the delivered file, each held against eager by itself, and timed: all
    together, or, for a large file, each beside eager alone, so that one session at a time is in memory.

    A 16-bit file is joined by its float32 form, to compare with.
    """
    candidates = []
    with progress.stage("runtimes") as done:
        with ahead(_at_once(file)) as begin:
            for plan in [_begun(each, begin) for each in _plans(file, options)]:
                candidate, session = _tried(plan, file, proof, judge, progress.step)
                candidates.append(candidate)
                if session is not None:
                    stopwatch.take(candidate, session)
                if file.large:
                    del session  # the stopwatch lets go of it, too
                    stopwatch.time(progress.step)
        done(remarks.candidates_line(candidates))
    return tuple(candidates)


def _at_once(file: File) -> int:
    """How many sessions are opened at once: OpenVINO compiles for seconds, on one core; of a large file, none ahead."""
    return 0 if file.large else available_threads()


def _plans(file: File, options: ExportOptions) -> list[_Plan]:
    delivered, float32 = as_written(file), made_by(lambda: file.lowered.model)
    plans = []
    for runtime in _RUNTIMES[options.target]:
        if options.precision != "fp32":
            plans.append(_Plan(runtime, "fp32", "", float32))
        proved = runtime is _ONNX_RUNTIME or options.target == "openvino"
        plans.append(_Plan(runtime, options.precision, file.name, delivered, proved))
    if options.target == "auto" and options.precision == "fp32":
        plans.append(_Plan(_LOWERING, "bf16", file.name, delivered))
    return [
        replace(plan, way=replace(plan.way, load=plan.runtime.load), refusal=_refusal(plan, file)) for plan in plans
    ]


def _refusal(plan: _Plan, file: File) -> str:
    try:
        plan.runtime.check(plan.precision)
        if plan.runtime is _LOWERING:
            _check_lowering(file)
    except MetaformerExportError as error:
        return str(error)
    return ""


def _begun(plan: _Plan, begin: Begin) -> _Plan:
    """The plan, whose session is being opened unless it is refused."""
    return plan if plan.refusal else replace(plan, way=replace(plan.way, opened=begin(plan.way.open)))


def _tried(plan: _Plan, file: File, proof: ParityReport, judge: Judge, step: Step) -> tuple[Candidate, Session | None]:
    """A candidate, and its session where it is to be timed: what the export's own proof rests on is in any case."""
    settings = plan.runtime.settings(available_threads())
    candidate = Candidate(plan.runtime.name, plan.precision, plan.file, settings, passed=False)
    if plan.refusal:
        return replace(candidate, failures=(plan.refusal,)), None
    try:
        way = plan.way
        if file.large:  # opened here, once: nobody else does
            session = way.open()
            way = replace(way, opened=lambda: session)
        if not plan.proved:
            proof = judge.compare({plan.runtime.name: way}, plan.precision, at_once=_at_once(file), step=step)
        session = way.open()
    except MetaformerExportError as error:
        return replace(candidate, failures=(str(error),)), None
    outputs = proof.same_clusters or proof.outputs
    candidate = replace(
        candidate,
        passed=proof.passed,
        rms_rel=max(output.rms_rel for output in outputs),
        cosine=min(output.cosine for output in outputs),
        failures=proof.failures,
    )
    return candidate, session if proof.passed or plan.proved else None


def _check_lowering(file: File) -> None:
    """InputError if the hint would lower what a bfloat16 file keeps in float32."""
    kept = float32_only(file.lowered)
    if kept:
        raise InputError(
            f"OpenVINO would lower {' and '.join(kept)} too, which stays in float32; --bf16 makes a file that says so."
        )

# SPDX-License-Identifier: Apache-2.0
"""Ways to run the exported model on this machine: which there are, which compute what eager computes, which to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from . import remarks
from .artifacts import BenchRow, Candidate, Choice, ParityReport, Precision, Target
from .errors import InputError, MetaformerExportError
from .export.precision import float32_only
from .options import ExportOptions
from .progress import Progress, Step
from .proving import File, Judge, Way, as_written, made_by
from .runtime import onnxruntime, openvino
from .runtime.session import OpenSession
from .runtime.threads import available_threads


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
class Contender:
    """A candidate, and how to run it where it can be timed. What the export's own proof rests on is timed in any
    case. The session of a large model is opened again for that, so that only one is in memory.
    """

    candidate: Candidate
    way: Way | None


@dataclass(frozen=True)
class _Plan:
    """A way to run the model that is not tried yet; `proved` if the export's own proof has it."""

    runtime: Runtime
    precision: Precision
    file: str
    way: Way
    proved: bool = False


def judge_candidates(
    file: File, proof: ParityReport, judge: Judge, options: ExportOptions, progress: Progress
) -> tuple[Contender, ...]:
    """Every way that the target has to run the delivered file, each held against eager by itself.

    A 16-bit file is joined by its float32 form, to compare with.
    """
    with progress.stage("runtimes") as done:
        contenders = tuple(_tried(plan, file, proof, judge, progress.step) for plan in _plans(file, options))
        done(remarks.candidates_line([each.candidate for each in contenders]))
    return contenders


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
    return plans


def _tried(plan: _Plan, file: File, proof: ParityReport, judge: Judge, step: Step) -> Contender:
    settings = plan.runtime.settings(available_threads())
    candidate = Candidate(plan.runtime.name, plan.precision, plan.file, settings, passed=False)
    try:
        plan.runtime.check(plan.precision)
        if plan.runtime is _LOWERING:
            _check_lowering(file)
        way = replace(plan.way, load=plan.runtime.load)
        session = None if plan.proved and file.large else way.open()
        if not plan.proved:
            proof = judge.compare({plan.runtime.name: replace(way, session=session)}, plan.precision, step=step)
    except MetaformerExportError as error:
        return Contender(replace(candidate, failures=(str(error),)), None)
    outputs = proof.same_clusters or proof.outputs
    candidate = replace(
        candidate,
        passed=proof.passed,
        rms_rel=max(output.rms_rel for output in outputs),
        cosine=min(output.cosine for output in outputs),
        failures=proof.failures,
    )
    if not (proof.passed or plan.proved):
        return Contender(candidate, None)
    return Contender(candidate, way if file.large else replace(way, session=session))


def _check_lowering(file: File) -> None:
    """InputError if the hint would lower what a bfloat16 file keeps in float32."""
    kept = float32_only(file.lowered)
    if kept:
        raise InputError(
            f"OpenVINO would lower {' and '.join(kept)} too, which stays in float32; --bf16 makes a file that says so."
        )


def choose(contenders: tuple[Contender, ...], rows: list[BenchRow], batch: int) -> Choice | None:
    """The fastest candidate of the folder at a batch size that passed; None if none did."""
    times = {(row.runtime, row.precision): row for row in rows if row.batch == batch and row.file}
    timed = [
        (times[each.candidate.runtime, each.candidate.precision], each.candidate)
        for each in contenders
        if each.candidate.passed and each.candidate.file
    ]
    if not timed:
        return None
    # Each was timed beside eager, but not all beside each other.
    row, best = max(timed, key=lambda pair: pair[0].speedup_over_eager)
    return Choice(best.runtime, best.precision, best.file, best.settings, batch, row.median_ms, row.speedup_over_eager)

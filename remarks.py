# SPDX-License-Identifier: Apache-2.0
"""What an export says about its results, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .artifacts import BenchReport, BenchRow, Candidate, Choice, ExportResult, Gain, ModelSpec, ParityReport
from .options import ExportOptions
from .runtime import onnxruntime, openvino
from .runtime.tensorrt import target as tensorrt
from .runtime.tensorrt.engine import Engine, FallenBack

_TITLES = {each.NAME: each.TITLE for each in (onnxruntime, openvino, tensorrt)}


_SHOWN = 3
"""Names in a note; all are in the manifest."""


def time_line(rows: list[BenchRow]) -> str:
    """Medians of all candidates, batch by batch."""
    by_batch = {row.batch: [each for each in rows if each.batch == row.batch] for row in rows}
    return "; ".join(
        f"batch {batch}: " + ", ".join(f"{row.runtime} {row.precision} {row.median_ms:.1f} ms" for row in each)
        for batch, each in by_batch.items()
    )


def parity_line(proof: ParityReport, classifier: bool) -> str:
    """Verdict and the figures it rests on."""
    clusters = proof.cluster_agreement
    worst = max(proof.same_clusters if clusters else proof.outputs, key=lambda output: output.rms_rel)
    verdict = "holds" if proof.passed else "FAILED"
    top1 = f"top-1 {100 * worst.top1_agreement:.0f} % " if classifier else ""
    given = ""
    if clusters:
        free = max(output.rms_rel for output in proof.outputs)
        given = (
            f" with eager's clusters ({100 * free:.2g} % with its own, "
            f"which agree for {100 * clusters.mean:.1f} % of tokens)"
        )
    return (
        f"{verdict}: rms error {100 * worst.rms_rel:.2g} % of the spread, cosine {worst.cosine:.6f}, "
        f"{top1}on {proof.images} images{given}"
    )


def candidates_line(candidates: Sequence[Candidate]) -> str:
    """Of which parity holds, of which it fails, and which cannot be run."""

    def verdict(each: Candidate) -> str:
        return "holds" if each.passed else "does not run" if each.rms_rel is None else "FAILED"

    return ", ".join(f"{each.runtime} {each.precision} {verdict(each)}" for each in candidates)


def speeds(result: ExportResult) -> str:
    """Medians at the last batch size, runtime by runtime."""
    bench = result.bench
    batch = bench.results[-1].batch
    by_runtime: dict[str, list[str]] = {}
    for row in bench.results:
        if row.runtime in _TITLES and row.batch == batch:
            form = "" if row.file else " form"
            ratio = "" if bench.unstable else f" ({row.speedup_over_eager:.2f}x eager)"
            figure = f"{row.precision}{form} {row.median_ms:.1f} ms{ratio}"
            by_runtime.setdefault(_TITLES[row.runtime], []).append(figure)
    if not by_runtime:
        return f"timed in eager PyTorch alone: {batch} images in {bench.results[-1].median_ms:.1f} ms"
    text = "; ".join(f"{title} {', '.join(each)}" for title, each in by_runtime.items())
    if result.precision == "fp16":
        text += "; FP16 speed shows on a GPU"
    if result.precision == "bf16" and bench.speedup_over_eager is None:
        text += "; the BF16 file itself was not timed"
    if bench.unstable:
        text += "; do not rely on these"
    gpu = " and the GPU" if any(row.gpu_ms is not None for row in bench.results) else ""
    return f"on {bench.threads} CPU threads{gpu} at batch {batch}: {text}"


def choice_line(choice: Choice, unstable: bool) -> str:
    """What to run, and how."""
    hint = choice.settings.get("INFERENCE_PRECISION_HINT")
    how = f" with INFERENCE_PRECISION_HINT={hint}" if hint else ""
    if choice.compiled_for is not None:
        how += f", compiled for batches of {choice.compiled_for}"
    gain = "" if unstable else f", {choice.speedup_over_eager:.2f}x eager"
    return (
        f"choice: {choice.file} in {_TITLES[choice.runtime]}{how}, {choice.precision}, "
        f"{choice.median_ms:.1f} ms at batch {choice.batch}{gain}"
    )


def closing_notes(
    proof: ParityReport, timing: BenchReport, options: ExportOptions, engine: Engine | None = None
) -> list[str]:
    """What the user should know about the proof and the timing."""
    notes = []
    if proof.cluster_agreement is not None:
        free = max(proof.outputs, key=lambda output: output.rms_rel)
        same = max(proof.same_clusters, key=lambda output: output.rms_rel)
        notes.append(
            f"{100 * (1 - proof.cluster_agreement.mean):.2g} % of tokens fall into another cluster than in eager, as "
            f"rounding decides: of the rms error of {100 * free.rms_rel:.2g} % of the spread, "
            f"{100 * same.rms_rel:.2g} % is arithmetic and {100 * max(proof.changed_clusters.values()):.2g} % is that."
        )
    if timing.unstable:
        notes.append(f"Do not rely on the latencies ({timing.unstable}).")
    if proof.out_of_range:
        first = proof.out_of_range[0]
        notes.append(
            f"{len(proof.out_of_range)} values leave float16's range on these images and stay in float32, "
            f"first {first.module} ({first.op}, {first.max_abs:.3g}); all are in parity.json."
        )
    if options.precision == "fp16" and engine is None:
        notes.append(
            "No GPU was used: a CPU runs FP16 through casts, so its speed shows on a GPU only. No engine was built: "
            "`metaformer-export build` makes one of this folder where TensorRT and a GPU are."
        )
    if engine is not None:
        notes += engine_notes(engine)
    if options.precision == "bf16":
        ran = timing.speedup_over_eager is not None
        notes.append(
            "ONNX Runtime's CPU has no BF16: parity is of the rounded graph"
            + (" there; OpenVINO ran the file itself." if ran else ", and only the FP32 form was timed.")
        )
    if options.target == "auto" and timing.choice is not None and timing.choice.runtime == openvino.NAME:
        notes.append("OpenVINO is fastest here: --target openvino makes a file for it alone, which it may run faster.")
    return [*notes, *_no_candidates(timing.candidates, proof, options)]


def engine_notes(engine: Engine) -> list[str]:
    """Where an engine is not what its file asks for."""
    kinds: dict[tuple[str, str], list[FallenBack]] = {}
    for each in engine.report.fallen_back:
        kinds.setdefault((each.wanted, each.got), []).append(each)
    notes = []
    for (wanted, got), fallen in kinds.items():
        modules = tuple(dict.fromkeys(module for each in fallen for module in each.modules))
        shown = ", ".join(modules[:_SHOWN])
        more = f" and {len(modules) - _SHOWN} more" if len(modules) > _SHOWN else ""
        layers = "1 layer" if len(fallen) == 1 else f"{len(fallen)} layers"
        notes.append(f"The engine computes in {got} what the file has in {wanted} in {layers}: {shown}{more}.")
    return notes


def gain_notes(timing: BenchReport) -> list[str]:
    """Whether a quantised model pays here, and what is in its way."""
    gain = timing.gain
    if gain is None:
        return ["Whether INT8 pays here is not known: it, or the float form, could not be timed."]
    if gain.pays:
        return []
    named = ", ".join(f"{module} ({ms:+.2f} ms)" for module, ms in gain.costliest)
    slow = f" Slower than in float: {named}." if named else ""
    return [f"INT8 does not pay here: {gain_line(gain)}.{slow}"]


def gain_line(gain: Gain) -> str:
    """INT8 against the float form."""
    return (
        f"INT8 takes {gain.median_ms:.1f} ms in {_TITLES[gain.runtime]}, the float model {gain.float_median_ms:.1f} ms "
        f"in {_TITLES[gain.float_runtime]}: {gain.ratio:.2f}x at batch {gain.batch}"
    )


def _no_candidates(candidates: Sequence[Candidate], proof: ParityReport, options: ExportOptions) -> list[str]:
    """Why further runtimes or precisions cannot be taken, each reason once; the export's own is said elsewhere."""
    by_reason: dict[str, list[str]] = {}
    for each in candidates:
        itself = (each.runtime, each.precision) == (onnxruntime.NAME, options.precision)
        if not (each.passed or itself or each.failures == proof.failures):
            by_reason.setdefault(each.failures[0], []).append(f"{_TITLES[each.runtime]} in {each.precision}")
    return [f"No candidate: {', '.join(names)}. {_sentence(reason)}" for reason, names in by_reason.items()]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def replacement_notes(old: dict[str, Any] | None, spec: ModelSpec, options: ExportOptions) -> list[str]:
    """That the folder held another export, which its name does not tell apart."""
    if old is None:
        return []
    before, precision = old.get("model", {}), old.get("precision", {})
    pairs = {
        "weights": (before.get("weights"), spec.weights),
        "checkpoint": (before.get("checkpoint_sha256"), spec.checkpoint_sha256),
        "precision": (precision.get("requested"), options.precision),
        "type of inputs and outputs": (precision.get("io"), options.io),
    }
    changed = [f"{what} ({was})" for what, (was, now) in pairs.items() if was != now]
    return [f"The folder held an export with other {', '.join(changed)}; it is replaced."] if changed else []

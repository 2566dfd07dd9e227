# SPDX-License-Identifier: Apache-2.0
"""What an export says about its results, in words."""

from __future__ import annotations

from typing import Any

from .artifacts import BenchReport, BenchRow, ModelSpec, ParityReport
from .options import ExportOptions


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


def closing_notes(proof: ParityReport, timing: BenchReport, options: ExportOptions) -> list[str]:
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
        notes.append(f"The machine was busy while timing ({timing.unstable}): do not rely on the latencies.")
    if proof.out_of_range:
        first = proof.out_of_range[0]
        notes.append(
            f"{len(proof.out_of_range)} values leave float16's range on these images and stay in float32, "
            f"first {first.module} ({first.op}, {first.max_abs:.3g}); all are in parity.json."
        )
    if options.precision == "fp16":
        notes.append(
            "No GPU was used: a CPU runs FP16 through casts, so its speed shows on a GPU only. No engine was built."
        )
    if options.precision == "bf16":
        notes.append(
            "ONNX Runtime's CPU has no BF16: parity is of the rounded graph, and only the FP32 form was timed."
        )
    return notes


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

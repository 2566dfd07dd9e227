# SPDX-License-Identifier: Apache-2.0
"""Does the exported model compute what eager PyTorch computes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Arithmetic, OutOfRange, OutputParity, ParityReport
from ..calibration.images import ImageSet
from ..errors import ParityError
from ..progress import Step, untold
from .memory import drop_mapped_weights
from .session import run_each

Outputs = list[NDArray[np.float32]]
Runner = Callable[[NDArray[np.float32]], Outputs]
"""A batch (B, C, H, W) -> outputs in order: a function, or a session, which may take several batches at once."""
Opener = Callable[[], Runner]

_KEPT_BYTES = 64 * 2**20
BATCHES = (1, 3)
"""One image alone, and several, so that a batch size baked into the graph shows."""


@dataclass(frozen=True)
class Thresholds:
    """What a precision must reach: at most max_rel and rms_rel, at least cosine and top1_agreement."""

    max_rel: float
    rms_rel: float
    cosine: float
    top1_agreement: float


THRESHOLDS: dict[Arithmetic, Thresholds] = {
    "fp32": Thresholds(max_rel=1e-4, rms_rel=1e-5, cosine=0.999999, top1_agreement=1.0),
    # Factors have ten bits of mantissa, as in float16, and sums are float32.
    "tf32": Thresholds(max_rel=0.05, rms_rel=0.01, cosine=0.9999, top1_agreement=1.0),
    "fp16": Thresholds(max_rel=0.05, rms_rel=0.01, cosine=0.9999, top1_agreement=1.0),
    # Three bits of mantissa fewer than float16: eight times its error (measured), and near ties may swap.
    "bf16": Thresholds(max_rel=0.2, rms_rel=0.04, cosine=0.999, top1_agreement=0.8),
    "int8": Thresholds(max_rel=1.0, rms_rel=0.2, cosine=0.98, top1_agreement=0.5),
}


def compare(
    reference: Runner,
    candidates: Mapping[str, Opener],
    images: ImageSet,
    precision: Arithmetic,
    names: Sequence[str],
    *,
    classifier: bool,
    out_of_range: tuple[OutOfRange, ...] = (),
    beside: Mapping[str, Opener] | None = None,
    step: Step = untold,
) -> ParityReport:
    """Run every image through the reference and each candidate, alone and in batches, and judge the worst.

    Args:
        reference: eager float32: a batch (B, C, H, W) -> outputs in order.
        candidates: what opens ways to run the exported model, by name; each must pass, and is let go of before the
            next is opened.
        names: of the outputs.
        classifier: whether outputs are logits (N, classes), of which the first classes are compared.
        beside: likewise, but not judged: how far each is from the candidates is in the report's `between`.
        step: told of each candidate.
    """
    limits = THRESHOLDS[precision]
    measured: dict[str, list[OutputParity]] = {name: [] for name in names}
    chunks = {batch: chunks_of(images, batch) for batch in BATCHES}
    with step("eager"):
        expected = {batch: _run(reference, chunks[batch]) for batch in BATCHES}
    failures = [
        f"{name}: eager's own output is not finite"
        for name, want in zip(names, expected[BATCHES[0]], strict=True)
        if not np.isfinite(want).all()
    ]
    given: dict[str, dict[int, Outputs]] = {}
    for method, open_candidate in candidates.items():
        with step(method):
            results = _through(open_candidate, chunks)
        _keep(given, method, results)
        for batch in BATCHES:
            for name, want, got in zip(names, expected[batch], results[batch], strict=True):
                result = measure(name, want, got, classifier=classifier)
                measured[name].append(result)
                failures += [f"{failure} ({method}, batch {batch})" for failure in judge(result, limits)]
    for method, open_other in (beside or {}).items():
        with step(method):
            _keep(given, method, _through(open_other, chunks))
    return ParityReport(
        passed=not failures,
        precision=precision,
        images=len(images.names),
        image_source=images.source,
        batches=BATCHES,
        outputs=tuple(worst(results) for results in measured.values()),
        methods=tuple(candidates),
        thresholds=asdict(limits),
        failures=tuple(failures),
        out_of_range=out_of_range,
        between={
            f"{first}, {second}": _furthest(expected, given[first], given[second])
            for first, second in combinations(given, 2)
        },
    )


@np.errstate(invalid="ignore", over="ignore")  # infinities and NaN are a result here, and judged as one
def measure(name: str, want: NDArray[np.floating], got: NDArray[np.floating], *, classifier: bool) -> OutputParity:
    """Differences of one output, both of shape (N, ...), computed in float64; ParityError if the shapes differ."""
    if want.shape != got.shape:
        raise ParityError(f"output {name} has shape {got.shape}, eager has {want.shape}.")
    reference, candidate = want.astype(np.float64), got.astype(np.float64)
    spread = reference.std() or 1.0
    difference = candidate - reference
    norms = np.linalg.norm(reference) * np.linalg.norm(candidate)
    cosine = float((reference * candidate).sum() / norms) if norms else float(np.array_equal(reference, candidate))
    top1, top5 = (_agreement(reference, candidate, k) if classifier else 1.0 for k in (1, 5))
    return OutputParity(
        name=name,
        max_abs=float(np.abs(difference).max()),
        max_rel=float(np.abs(difference).max() / spread),
        rms_rel=float(np.sqrt(np.mean(difference**2)) / spread),
        cosine=cosine,
        top1_agreement=top1,
        top5_agreement=top5,
    )


@np.errstate(invalid="ignore", over="ignore")
def _furthest(expected: Mapping[int, Outputs], first: Mapping[int, Outputs], second: Mapping[int, Outputs]) -> float:
    """Greatest rms of the differences of two, over the reference's spread, of all batches and outputs; NaN where one
    is not finite.
    """
    found = []
    for batch, references in expected.items():
        for reference, one, other in zip(references, first[batch], second[batch], strict=True):
            difference = one.astype(np.float64) - other.astype(np.float64)
            found.append(np.sqrt(np.mean(difference**2)) / (reference.std() or 1.0))
    return float(np.max(found))


def judge(output: OutputParity, limits: Thresholds) -> list[str]:
    """What misses its threshold, in words; NaN misses every one."""
    failures = []
    for key, limit in asdict(limits).items():
        value = getattr(output, key)
        upper = key in ("max_rel", "rms_rel")
        if not (value <= limit if upper else value >= limit):
            failures.append(f"{output.name}: {key} {value:.3g} is {'above' if upper else 'below'} {limit:g}")
    return failures


def chunks_of(images: ImageSet, batch: int) -> list[NDArray[np.float32]]:
    """All images in full batches; the last is filled up as ImageSet.take does."""
    return [images.take(start, batch) for start in range(0, len(images.names), batch)]


def _keep(given: dict[str, dict[int, Outputs]], method: str, results: dict[int, Outputs]) -> None:
    """Keep outputs until all are there, unless they are large maps, of which one way's at a time is in memory."""
    if sum(each.nbytes for outputs in results.values() for each in outputs) <= _KEPT_BYTES:
        given[method] = results


def _through(opener: Opener, chunks: Mapping[int, Sequence[NDArray[np.float32]]]) -> dict[int, Outputs]:
    """Outputs by batch size; what is opened is let go of."""
    runner, results = opener(), {}
    for batch, images in chunks.items():
        results[batch] = _run(runner, images)
        drop_mapped_weights()
    return results


def _run(runner: Runner, chunks: Sequence[NDArray[np.float32]]) -> Outputs:
    return joined(run_each(runner, [(chunk,) for chunk in chunks]))


def joined(results: Sequence[Outputs]) -> Outputs:
    """Outputs of several batches as those of one."""
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]


def _agreement(reference: NDArray[np.float64], candidate: NDArray[np.float64], k: int) -> float:
    """Mean share of the first k classes that both have; NaN agrees with nothing."""
    if not np.isfinite(candidate).all():
        return 0.0
    k = min(k, reference.shape[-1])
    first, second = (np.argsort(-scores, axis=-1, kind="stable")[..., :k] for scores in (reference, candidate))
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(first, second, strict=True)]))


def worst(results: Sequence[OutputParity]) -> OutputParity:
    """The worst of each figure over several measurements of one output."""

    def most(key: str) -> float:
        return float(np.max([getattr(result, key) for result in results]))

    def least(key: str) -> float:
        return float(np.min([getattr(result, key) for result in results]))

    return OutputParity(
        name=results[0].name,
        max_abs=most("max_abs"),
        max_rel=most("max_rel"),
        rms_rel=most("rms_rel"),
        cosine=least("cosine"),
        top1_agreement=least("top1_agreement"),
        top5_agreement=least("top5_agreement"),
    )

# SPDX-License-Identifier: Apache-2.0
"""Parity of clustering models: arithmetic and decisions, judged apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Arithmetic, ClusterAgreement, NodeAgreement, OutputParity, ParityReport
from ..calibration.images import ImageSet
from ..progress import Step, untold
from .clustering import Orders, agreement, lent_agreement, undecided
from .memory import drop_mapped_weights
from .parity import BATCHES, THRESHOLDS, Outputs, chunks_of, joined, judge, measure, worst
from .session import Session, run_each

Decide = Callable[[NDArray[np.float32]], tuple[Outputs, Orders]]
Opener = Callable[[], tuple[Session, tuple[str, ...]]]


@dataclass(frozen=True)
class Least:
    """What each clustering must reach by itself: mean shares of tokens in eager's cluster, and of lent tokens."""

    alone: float
    lent: float


LEAST: dict[Arithmetic, Least] = {
    "fp32": Least(0.8, 0.6),
    "tf32": Least(0.6, 0.45),
    "fp16": Least(0.6, 0.45),
    "bf16": Least(0.5, 0.35),
    "int8": Least(0.5, 0.35),
}
"""Data; docs/parity.md says what was measured. A clustering that sorts the wrong way round keeps nothing, a random
one a token in 4 to 64, and of lent tokens still fewer.
"""

_Shares = dict[str, list[NDArray[np.float64]]]


@dataclass(frozen=True)
class _Batch:
    """All images in batches of one size, and what eager makes of them."""

    size: int
    chunks: list[NDArray[np.float32]]
    expected: Outputs
    orders: list[Orders]

    @classmethod
    def of(cls, size: int, chunks: list[NDArray[np.float32]], decide: Decide) -> _Batch:
        eager = [decide(chunk) for chunk in chunks]
        return cls(size, chunks, joined([outputs for outputs, _ in eager]), [orders for _, orders in eager])


@dataclass(frozen=True)
class _Free:
    """All images, each alone, through one candidate that makes its own clusters; shares by node, (N,) each."""

    outputs: Outputs
    agreements: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class _Apart:
    """Means of one clustering by itself, over candidates, batches and images: as in `Least`."""

    alone: float
    lent: float


@dataclass(frozen=True)
class _Same:
    """All images through one candidate with eager's clusters; shares by node, (N,) each."""

    outputs: Outputs
    alone: dict[str, NDArray[np.float64]]
    lent: dict[str, NDArray[np.float64]]


def weigh(
    proof: ParityReport,
    decide: Decide,
    candidates: Mapping[str, Opener],
    images: ImageSet,
    *,
    classifier: bool,
    own: bool = True,
    step: Step = untold,
) -> ParityReport:
    """The report with its verdict on the candidates as they run with eager's own clusters.

    What is left of the error then is arithmetic, and must be within the thresholds of the precision.
    Every clustering by itself must agree with eager's on `LEAST`.

    Args:
        proof: of the candidates running freely; its outputs stay in the report.
        decide: eager: a batch (B, C, H, W) -> outputs and orders.
        candidates: what opens the same candidates, laid open, as `Clusterings.open` does.
        own: tell as well how far clusters of its own agree, and what they change, of the first candidate alone: no part
            of the verdict, and one more run for each image.
        step: told of each candidate.
    """
    failures = [f"{each.name}: not finite" for each in proof.outputs if not np.isfinite(each.rms_rel)]
    same: dict[str, list[OutputParity]] = {output.name: [] for output in proof.outputs}
    changed = {output.name: 0.0 for output in proof.outputs}
    shares: tuple[_Shares, _Shares, _Shares] = ({}, {}, {})
    batches = [_Batch.of(batch, chunks_of(images, batch), decide) for batch in BATCHES]
    for number, (method, opener) in enumerate(candidates.items()):
        with step(f"{method}, its clusterings"):
            free, results = _run(opener, batches, freely=own and number == 0)
        if free is not None:
            of_output = zip(changed, batches[0].expected, results[0].outputs, free.outputs, strict=True)
            changed = {
                name: float(np.sqrt(np.mean((own - got) ** 2)) / (want.std() or 1.0))
                for name, want, got, own in of_output
            }
            _collect(shares[0], free.agreements)
        for batch, runs in zip(batches, results, strict=True):
            _collect(shares[1], runs.alone)
            _collect(shares[2], runs.lent)
            for name, want, got in zip(same, batch.expected, runs.outputs, strict=True):
                same[name].append(measure(name, want, got, classifier=classifier))
                broken = judge(same[name][-1], THRESHOLDS[proof.precision])
                failures += [f"{text} with eager's clusters ({method}, batch {batch.size})" for text in broken]
    least = LEAST[proof.precision]
    apart = {node: _Apart(_mean(shares[1][node]), _mean(shares[2][node])) for node in shares[1]}
    failures += [text for node, share in apart.items() for text in _judge_node(node, share, least)]
    return replace(
        proof,
        passed=not failures,
        failures=tuple(failures),
        thresholds=proof.thresholds | {"clusters_alone": least.alone, "clusters_lent": least.lent},
        cluster_agreement=_summary(shares[0], apart) if own else None,
        same_clusters=tuple(worst(results) for results in same.values()),
        changed_clusters=changed if own else {},
    )


def _judge_node(node: str, share: _Apart, least: Least) -> list[str]:
    texts = []
    if not share.alone >= least.alone:
        texts.append(f"{node}: {share.alone:.3g} of the tokens in eager's cluster is below {least.alone:g}")
    if not share.lent >= least.lent:
        texts.append(f"{node}: {share.lent:.3g} of the tokens lent as in eager is below {least.lent:g}")
    return texts


def _collect(shares: _Shares, measured: Mapping[str, NDArray[np.float64]]) -> None:
    for node, values in measured.items():
        shares.setdefault(node, []).append(values)


def _run(opener: Opener, batches: Sequence[_Batch], *, freely: bool) -> tuple[_Free | None, list[_Same]]:
    """One candidate: freely over the images alone, if at all; and over all batches with eager's clusters."""
    session, nodes = opener()

    def outputs(batch: _Batch, given: Callable[[Orders], Orders]) -> list[Outputs]:
        orders = [given({node: each[node] for node in nodes}) for each in batch.orders]
        return run_each(session, list(zip(batch.chunks, orders, strict=True)))

    def shares(
        batch: _Batch, runs: Sequence[Outputs], compare: Callable[..., NDArray[np.float64]]
    ) -> dict[str, NDArray[np.float64]]:
        made = len(batch.expected)
        return {
            node: np.concatenate(
                [
                    compare(want[node], got[made + i].astype(np.int64))
                    for got, want in zip(runs, batch.orders, strict=True)
                ]
            )
            for i, node in enumerate(nodes)
        }

    def only(batch: _Batch, runs: Sequence[Outputs]) -> Outputs:
        return joined([each[: len(batch.expected)] for each in runs])

    free = None
    if freely:
        alone = batches[0]
        runs = outputs(alone, undecided)
        free = _Free(only(alone, runs), shares(alone, runs, agreement))
        drop_mapped_weights()
    same = []
    for batch in batches:
        same.append((batch, outputs(batch, dict)))
        drop_mapped_weights()
    return free, [
        _Same(only(batch, runs), shares(batch, runs, agreement), shares(batch, runs, lent_agreement))
        for batch, runs in same
    ]


def _mean(shares: Sequence[NDArray[np.float64]]) -> float:
    return float(np.concatenate(shares).mean())


def _summary(free: _Shares, apart: Mapping[str, _Apart]) -> ClusterAgreement:
    nodes = []
    for node, each in free.items():
        values, share = np.concatenate(each), apart[node]
        nodes.append(NodeAgreement(node, float(values.min()), float(values.mean()), share.alone, share.lent))
    everything = np.concatenate([values for each in free.values() for values in each])
    return ClusterAgreement(float(everything.min()), float(everything.mean()), tuple(nodes))

# SPDX-License-Identifier: Apache-2.0
"""Parity of clustering models: arithmetic and decisions, judged apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..artifacts import ClusterAgreement, NodeAgreement, OutputParity, ParityReport, Precision
from ..calibration.images import ImageSet
from .clustering import Clusterings, Orders, agreement
from .parity import BATCHES, THRESHOLDS, Outputs, chunks_of, joined, judge, measure, worst

Decide = Callable[[NDArray[np.float32]], tuple[Outputs, Orders]]

LEAST_AGREEMENT: dict[Precision, float] = {"fp32": 0.8, "fp16": 0.5, "bf16": 0.5}
"""Least mean share of tokens in eager's cluster; docs/parity.md says what was measured. A wrong clustering
agrees on one cluster in 4 to 64.
"""


@dataclass(frozen=True)
class _Runs:
    """All images through one candidate: freely, and with eager's clusters; agreement by node, (N,) each."""

    free: Outputs
    same: Outputs
    agreements: dict[str, NDArray[np.float64]]


def weigh(
    proof: ParityReport,
    decide: Decide,
    candidates: Mapping[str, Clusterings],
    images: ImageSet,
    *,
    classifier: bool,
) -> ParityReport:
    """The report with its verdict on the candidates as they run with eager's own clusters.

    What is left of the error then is arithmetic, and must be within the thresholds of the precision.
    The clusterings themselves must agree on `LEAST_AGREEMENT` of the tokens.

    Args:
        proof: of the candidates running freely; its outputs stay in the report.
        decide: eager: a batch (B, C, H, W) -> outputs and orders.
        candidates: the same candidates, opened up.
    """
    least = LEAST_AGREEMENT[proof.precision]
    failures = [f"{each.name}: not finite" for each in proof.outputs if not np.isfinite(each.rms_rel)]
    same: dict[str, list[OutputParity]] = {output.name: [] for output in proof.outputs}
    changed: dict[str, list[float]] = {output.name: [] for output in proof.outputs}
    shares: dict[str, list[NDArray[np.float64]]] = {}
    for batch in BATCHES:
        chunks = chunks_of(images, batch)
        eager = [decide(chunk) for chunk in chunks]
        expected = joined([outputs for outputs, _ in eager])
        for method, clusterings in candidates.items():
            runs = _run(clusterings, chunks, [orders for _, orders in eager])
            for node, values in runs.agreements.items():
                shares.setdefault(node, []).append(values)
            for name, want, got, free in zip(same, expected, runs.same, runs.free, strict=True):
                same[name].append(measure(name, want, got, classifier=classifier))
                changed[name].append(float(np.sqrt(np.mean((free - got) ** 2)) / (want.std() or 1.0)))
                broken = judge(same[name][-1], THRESHOLDS[proof.precision])
                failures += [f"{text} with eager's clusters ({method}, batch {batch})" for text in broken]
    found = _summary(shares)
    if not found.mean >= least:
        failures.append(f"cluster_agreement {found.mean:.3g} is below {least:g}")
    return replace(
        proof,
        passed=not failures,
        failures=tuple(failures),
        thresholds=proof.thresholds | {"cluster_agreement": least},
        cluster_agreement=found,
        same_clusters=tuple(worst(results) for results in same.values()),
        changed_clusters={name: max(values) for name, values in changed.items()},
    )


def _run(clusterings: Clusterings, chunks: Sequence[NDArray[np.float32]], orders: Sequence[Orders]) -> _Runs:
    observing, nodes = clusterings.observe()
    seen = [observing(chunk) for chunk in chunks]
    outputs = len(seen[0]) - len(nodes)
    del observing
    following = clusterings.follow()
    same = [following(chunk, {node: each[node] for node in nodes}) for chunk, each in zip(chunks, orders, strict=True)]
    agreements = {
        node: np.concatenate(
            [agreement(got[outputs + i].astype(np.int64), each[node]) for got, each in zip(seen, orders, strict=True)]
        )
        for i, node in enumerate(nodes)
    }
    return _Runs(joined([each[:outputs] for each in seen]), joined(same), agreements)


def _summary(shares: Mapping[str, Sequence[NDArray[np.float64]]]) -> ClusterAgreement:
    values = {node: np.concatenate(each) for node, each in shares.items()}
    nodes = tuple(NodeAgreement(node, float(each.min()), float(each.mean())) for node, each in values.items())
    everything = np.concatenate(list(values.values()))
    return ClusterAgreement(float(everything.min()), float(everything.mean()), nodes)

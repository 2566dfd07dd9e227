# SPDX-License-Identifier: Apache-2.0
"""metaformer::BalancedClustering, version 1: what the operator means.

    order = BalancedClustering(Q)   attributes: cluster_size, levels (int)

Q is (B, H, N, d), real, N = cluster_size * 2^levels. order is (B, H, N), int64: the indices of each
head's tokens, so arranged that every run of cluster_size of them is one cluster.

Every level halves each group of the level above. Two centroids start as the means of the first and
of the last half of the group in its current order, normalised to length 1. Twice, tokens are
shared between the two by softmax(100 * cosine similarity), and each centroid becomes the normalised
sum of its shares of the (not normalised) tokens. The group is then sorted, ascending and stably, by
(cos(token, first) + 1) / max(cos(token, second) + 1, 1e-7); its halves are the groups of the next
level. Equal ratios keep their current order. Vectors of length 0 are not normalised. Computed in
at least float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..mixer_op import DOMAIN

OP_TYPE = "BalancedClustering"
OP_ID = (DOMAIN, OP_TYPE, "")
SHARPNESS = 100.0
ROUNDS = 2
LEAST = 1e-7
TINY = 1e-12
"""Length below which a vector counts as 0."""

Array = NDArray[np.float64]


def reference(q: NDArray[np.floating], levels: int) -> NDArray[np.int64]:
    """The operator in float64, one head at a time: (B, H, N, d) -> (B, H, N)."""
    batch, heads, tokens, dim = q.shape
    flat = q.astype(np.float64).reshape(-1, tokens, dim)
    return np.stack([_cluster(each, np.arange(tokens), levels) for each in flat]).reshape(batch, heads, tokens)


def _cluster(tokens: Array, group: NDArray[np.int64], levels: int) -> NDArray[np.int64]:
    """Indices of one group, sorted down to its last level."""
    if levels == 0:
        return group
    ordered = group[np.argsort(_ratio(tokens[group]), kind="stable")]
    half = len(ordered) // 2
    return np.concatenate([_cluster(tokens, part, levels - 1) for part in (ordered[:half], ordered[half:])])


def _ratio(tokens: Array) -> Array:
    """(n, d) -> (n,): how much nearer each token is to the first centroid's side; large is the second group."""
    directions, half = _normalised(tokens), len(tokens) // 2
    centroids = _normalised(np.stack([tokens[:half].mean(0), tokens[half:].mean(0)]))
    for _ in range(ROUNDS):
        scores = SHARPNESS * directions @ centroids.T
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        centroids = _normalised(shares.T @ tokens)
    first, second = (directions @ centroids.T + 1).T
    ratio: Array = first / np.maximum(second, LEAST)
    return ratio


def _normalised(vectors: Array) -> Array:
    normalised: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), TINY)
    return normalised

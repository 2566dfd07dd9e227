# SPDX-License-Identifier: Apache-2.0
"""metaformer::ClusterAttention, version 1: what the operator means.

    Y = ClusterAttention(Q, K, V, order)   attributes: cluster_size, overlap (int), scale (float)

Q, K, V and Y are (B, H, N, d), tokens in the order of the image. order is (B, H, N), int64: every
run of cluster_size indices is a cluster. N is one cluster, or an even number of them; then the
clusters 2i and 2i + 1 are a pair, the first of which also sees the first `overlap` tokens of the
second, and the second the last `overlap` tokens of the first. Every token of a cluster attends to
what its cluster sees: softmax(scale * q . k) v. Y is of Q's type.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..mixer_op import DOMAIN

OP_TYPE = "ClusterAttention"
OP_ID = (DOMAIN, OP_TYPE, "")

Array = NDArray[np.float64]


def reference(
    q: NDArray[np.floating],
    k: NDArray[np.floating],
    v: NDArray[np.floating],
    order: NDArray[np.int64],
    cluster_size: int,
    overlap: int,
    scale: float,
) -> Array:
    """The operator in float64, one cluster at a time."""
    out = np.empty(q.shape, np.float64)
    for image, head in np.ndindex(q.shape[:2]):
        clusters = order[image, head].reshape(-1, cluster_size)
        for i, queries in enumerate(clusters):
            keys = _seen(clusters, i, overlap)
            logits = scale * q[image, head, queries].astype(np.float64) @ k[image, head, keys].T.astype(np.float64)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[image, head, queries] = weights @ v[image, head, keys].astype(np.float64)
    return out


def _seen(clusters: NDArray[np.int64], i: int, overlap: int) -> NDArray[np.int64]:
    """Indices of the tokens that cluster i attends to."""
    own: NDArray[np.int64] = clusters[i]
    if len(clusters) == 1:
        return own
    borrowed = clusters[i + 1][:overlap] if i % 2 == 0 else clusters[i - 1][clusters.shape[1] - overlap :]
    return np.concatenate([own, borrowed])

# SPDX-License-Identifier: Apache-2.0
"""metaformer::LocalAttention, version 1: what the operator means.

    Y = LocalAttention(Q, K, V)   attributes: heads, window, stride (int), scale (float)

Q, K and V are (B, heads * d, H, W); Y is (B, heads * d, ceil(H / stride), ceil(W / stride)), of
Q's type. Every stride-th query of both axes attends to the window x window keys around its
position, window odd: softmax(scale * q . k) v per head. Beyond its border a map goes on by
reflection (the border itself is not repeated); H and W are greater than window // 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..mixer_op import DOMAIN

OP_TYPE = "LocalAttention"
OP_ID = (DOMAIN, OP_TYPE, "")

Array = NDArray[np.float64]


def reference(
    q: NDArray[np.floating],
    k: NDArray[np.floating],
    v: NDArray[np.floating],
    heads: int,
    window: int,
    stride: int,
    scale: float,
) -> Array:
    """The operator in float64, one position at a time."""
    batch, channels, height, width = q.shape
    queries, keys, values = (x.astype(np.float64).reshape(batch, heads, -1, height, width) for x in (q, k, v))
    margin = window // 2
    border = ((0, 0), (0, 0), (0, 0), (margin, margin), (margin, margin))
    keys, values = (np.pad(x, border, mode="reflect") for x in (keys, values))
    out = np.empty((batch, heads, channels // heads, -(-height // stride), -(-width // stride)))
    for y, x in np.ndindex(out.shape[3:]):
        top, left = y * stride, x * stride
        seen = (slice(None), slice(None), slice(None), slice(top, top + window), slice(left, left + window))
        logits = scale * np.einsum("bhd,bhdyx->bhyx", queries[:, :, :, top, left], keys[seen])
        weights = np.exp(logits - logits.max((2, 3), keepdims=True))
        weights /= weights.sum((2, 3), keepdims=True)
        out[:, :, :, y, x] = np.einsum("bhyx,bhdyx->bhd", weights, values[seen])
    return out.reshape(batch, channels, *out.shape[3:])

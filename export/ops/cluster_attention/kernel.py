# SPDX-License-Identifier: Apache-2.0
"""ClusterAttention in the Triton language: gather, attention and scatter in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def cluster_attention(
    q,
    k,
    v,
    order,
    batch,
    y,
    heads: tl.constexpr,
    tokens: tl.constexpr,
    dim: tl.constexpr,
    cluster_size: tl.constexpr,
    overlap: tl.constexpr,
    scale: tl.constexpr,
    query_block: tl.constexpr,
    key_block: tl.constexpr,
    rest_block: tl.constexpr,
    dim_block: tl.constexpr,
):
    """One program attends from the tokens of one cluster of one head of one image.

    Queries, keys and values are rows that are read where the order says that they are, and the rows
    of y are stored at the places of the queries: no tensor is copied into clusters or back. What a
    cluster sees is one run of the order, which starts at the cluster, or `overlap` before it where
    the cluster is the second of its pair. The run is far from a power of two long, so it is held in
    two blocks, key_block and rest_block, with one softmax; there is no second one if rest_block is 0.
    Rows are taken dim_block channels at a time, which bounds registers. The first values are asked
    for before the logits, so that they arrive meanwhile. Logits, weights and sums are float32, the
    operands of products are of the inputs' type.

    Memory traffic of a program, in rows: cluster_size of q and of y, cluster_size + overlap of k and
    of v, of which only the borrowed ones are read by two programs.
    """
    image, head, cluster = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = (image.to(tl.int64) * heads + head) * tokens
    q += first_row * dim
    k += first_row * dim
    v += first_row * dim
    y += first_row * dim
    own = order + first_row + cluster * cluster_size
    seen = own - overlap * (cluster % 2)
    keys: tl.constexpr = cluster_size + overlap
    rest: tl.constexpr = keys - key_block

    own_rows = _rows(own, cluster_size, tokens, query_block)
    key_rows = _rows(seen, keys, tokens, key_block)
    values = _gather(v, key_rows, keys, 0, dim, dim_block)
    if rest_block > 0:
        rest_rows = _rows(seen + key_block, rest, tokens, rest_block)
        rest_values = _gather(v, rest_rows, rest, 0, dim, dim_block)

    logits = tl.full((query_block, key_block), 0.0, tl.float32)
    if rest_block > 0:
        rest_logits = tl.full((query_block, rest_block), 0.0, tl.float32)
    for first in tl.static_range(0, dim, dim_block):
        queries = _gather(q, own_rows, cluster_size, first, dim, dim_block)
        logits = _add_logits(queries, k, key_rows, keys, first, dim, dim_block, logits)
        if rest_block > 0:
            rest_logits = _add_logits(queries, k, rest_rows, rest, first, dim, dim_block, rest_logits)
    logits = _scaled(logits, keys, scale)
    highest = tl.max(logits, 1)
    if rest_block > 0:
        rest_logits = _scaled(rest_logits, rest, scale)
        highest = tl.maximum(highest, tl.max(rest_logits, 1))

    weights = tl.exp2(logits - highest[:, None])
    total = tl.sum(weights, 1)
    if rest_block > 0:
        rest_weights = tl.exp2(rest_logits - highest[:, None])
        total += tl.sum(rest_weights, 1)
    inverse_total = 1.0 / total
    for first in tl.static_range(0, dim, dim_block):
        mixed = tl.dot(weights.to(values.dtype), values, input_precision="tf32x3")
        if rest_block > 0:
            mixed = tl.dot(rest_weights.to(values.dtype), rest_values, mixed, input_precision="tf32x3")
        if first + dim_block < dim:
            values = _gather(v, key_rows, keys, first + dim_block, dim, dim_block)
            if rest_block > 0:
                rest_values = _gather(v, rest_rows, rest, first + dim_block, dim, dim_block)
        _scatter(mixed * inverse_total[:, None], y, own_rows, cluster_size, first, dim, dim_block)


@triton.jit
def _rows(order, count: tl.constexpr, tokens: tl.constexpr, block: tl.constexpr):
    """`count` indices in a block.

    TensorRT times kernels on arbitrary data: what is no index is made one, so that nothing outside
    the tensors is touched.
    """
    position = tl.arange(0, block)
    rows = tl.load(order + position, position < count, other=0)
    return tl.minimum(tl.maximum(rows, 0), tokens - 1).to(tl.int32)


@triton.jit
def _gather(x, rows, count: tl.constexpr, first: tl.constexpr, dim: tl.constexpr, dim_block: tl.constexpr):
    """(rows, dim_block): channels of `count` rows from the channel `first` on; zero beyond them and beyond dim."""
    channel = first + tl.arange(0, dim_block)
    held = (tl.arange(0, rows.shape[0]) < count)[:, None] & (channel < dim)[None, :]
    return tl.load(x + rows[:, None] * dim + channel[None, :], held, other=0)


@triton.jit
def _scatter(mixed, y, rows, count: tl.constexpr, first: tl.constexpr, dim: tl.constexpr, dim_block: tl.constexpr):
    """Store what _gather would read."""
    channel = first + tl.arange(0, dim_block)
    held = (tl.arange(0, rows.shape[0]) < count)[:, None] & (channel < dim)[None, :]
    tl.store(y + rows[:, None] * dim + channel[None, :], mixed.to(y.dtype.element_ty), held)


@triton.jit
def _add_logits(
    queries,
    k,
    rows,
    count: tl.constexpr,
    first: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    logits,
):
    """Add what dim_block channels of the keys in `rows` contribute to the logits (queries, rows)."""
    keys = _gather(k, rows, count, first, dim, dim_block)
    return tl.dot(queries, tl.trans(keys), logits, input_precision="tf32x3")


@triton.jit
def _scaled(logits, count: tl.constexpr, scale: tl.constexpr):
    """Logits times scale and log2(e), so that exp2 takes them; -inf for the keys after the first `count`."""
    seen = (tl.arange(0, logits.shape[1]) < count)[None, :]
    return tl.where(seen, logits * (scale * _LOG2_E), float("-inf"))

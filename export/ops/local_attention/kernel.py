# SPDX-License-Identifier: Apache-2.0
"""LocalAttention in the Triton language: tiles of queries against the keys around them, in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_BELOW_ALL: tl.constexpr = tl.constexpr(-1e30)
"""Below any logit. It is finite because a block may have no key for a query, and -inf less -inf is no number."""


@triton.jit
def local_attention(
    q,
    k,
    v,
    batch,
    y,
    heads: tl.constexpr,
    dim: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    window: tl.constexpr,
    stride: tl.constexpr,
    scale: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    query_block: tl.constexpr,
    key_block: tl.constexpr,
    dim_block: tl.constexpr,
    value_block: tl.constexpr,
):
    """One program attends from a tile of queries of one head of one image, to value_block channels.

    The queries of a tile share most of their keys: those of the tile and of half a window around it,
    which are taken key_block at a time, with a softmax that goes on from block to block. Logits are
    dense products, of which each query keeps the keys of its window: a quarter at a window of 7, an
    eighth with stride 2. The border is mirrored where keys and values are read, so no map is padded.
    Logits, weights and sums are float32, the operands of products are of the inputs' type.

    Memory traffic: q and y once, k and v once for every tile that sees a place, which for tiles of
    7x8 and a window of 7 is 3.3 times. The programs of one head follow each other, so that what their
    tiles share is still in the L2 cache.
    """
    image, tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    out_height: tl.constexpr = (height + stride - 1) // stride
    out_width: tl.constexpr = (width + stride - 1) // stride
    tiles_across: tl.constexpr = (out_width + tile_columns - 1) // tile_columns
    top, left = tile // tiles_across * tile_rows, tile % tiles_across * tile_columns
    parts: tl.constexpr = (dim + value_block - 1) // value_block
    head, first_channel = part // parts, part % parts * value_block
    area: tl.constexpr = height * width
    before = (image.to(tl.int64) * heads + head) * dim
    q += before * area
    k += before * area
    v += before * area
    y += before * (out_height * out_width)

    query = tl.arange(0, query_block)
    # Places of the block beyond the tile repeat its last row, so that each of them sees a key.
    row, column = tl.minimum(query // tile_columns, tile_rows - 1), query % tile_columns
    held = (query < tile_rows * tile_columns) & (top + row < out_height) & (left + column < out_width)
    places = (top + row) * (stride * width) + (left + column) * stride
    queries = _channels(q, 0, dim, dim_block, area, places, held)

    across: tl.constexpr = (tile_columns - 1) * stride + window
    keys: tl.constexpr = ((tile_rows - 1) * stride + window) * across
    highest = tl.full((query_block,), _BELOW_ALL, tl.float32)
    total = tl.full((query_block,), 0.0, tl.float32)
    mixed = tl.full((query_block, value_block), 0.0, tl.float32)
    for first in tl.range(0, keys, key_block, num_stages=1):
        key = first + tl.arange(0, key_block)
        below, right = key // across, key % across
        sources = _mirrored(top * stride - window // 2 + below, height) * width
        sources += _mirrored(left * stride - window // 2 + right, width)
        logits = tl.full((query_block, key_block), 0.0, tl.float32)
        logits = _add_logits(queries, k, 0, dim, dim_block, area, sources, key < keys, logits)
        for channel in tl.static_range(dim_block, dim, dim_block):
            others = _channels(q, channel, dim, dim_block, area, places, held)
            logits = _add_logits(others, k, channel, dim, dim_block, area, sources, key < keys, logits)
        values = _channels(v, first_channel, dim, value_block, area, sources, key < keys)
        seen = _within(below, row * stride, window) & _within(right, column * stride, window)
        logits = tl.where(seen, logits * (scale * _LOG2_E), float("-inf"))

        above = tl.maximum(highest, tl.max(logits, 1))
        weights = tl.exp2(logits - above[:, None])
        kept = tl.exp2(highest - above)
        total = total * kept + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(values.dtype), tl.trans(values), mixed * kept[:, None], input_precision="tf32x3")
        highest = above

    channel = first_channel + tl.arange(0, value_block)
    to = channel[None, :] * (out_height * out_width) + ((top + row) * out_width + left + column)[:, None]
    mixed *= (1.0 / total)[:, None]
    tl.store(y + to, mixed.to(y.dtype.element_ty), (channel < dim)[None, :] & held[:, None])


@triton.jit
def _channels(x, first, dim: tl.constexpr, block: tl.constexpr, area: tl.constexpr, places, held):
    """(block, places): channels of x from `first` on, at `places` of the map; zero where there is none."""
    channel = first + tl.arange(0, block)
    return tl.load(x + channel[:, None] * area + places[None, :], (channel < dim)[:, None] & held[None, :], other=0)


@triton.jit
def _add_logits(
    queries,
    k,
    first: tl.constexpr,
    dim: tl.constexpr,
    block: tl.constexpr,
    area: tl.constexpr,
    places,
    held,
    logits,
):
    """Add what a block of channels, (block, queries) and as many of the keys, contributes to the logits."""
    keys = _channels(k, first, dim, block, area, places, held)
    return tl.dot(tl.trans(queries), keys, logits, input_precision="tf32x3")


@triton.jit
def _mirrored(position, length: tl.constexpr):
    """Positions mirrored at the ends of [0, length); far beyond the end, where no query looks, the first."""
    return tl.maximum((length - 1) - tl.abs((length - 1) - tl.abs(position)), 0)


@triton.jit
def _within(key, query, window: tl.constexpr):
    """(queries, keys) whether a key's place along an axis is in a query's window, which starts at `query`."""
    offset = key[None, :] - query[:, None]
    return (offset >= 0) & (offset < window)

# SPDX-License-Identifier: Apache-2.0
"""BalancedClustering in the Triton language: all levels of a head, their sorting included, in one program.

The output is the only memory it needs. Between levels it holds the order so far; while a level is sorted,
it holds a key of 64 bits in the place of every token. Keys compare as the operator sorts, by ratio and
then by the current position, no two are equal, and their last bits are the token.

A tile is `steps` times `lanes` tokens, gathered by whole rows, each by a few threads side by side, so that
sums over tokens stay in a thread until a pass ends. A group takes four passes: means, two rounds, ratios.
While groups are larger than a tile, every pass streams the rows through shared memory, ahead of their use.
As soon as groups fit, a tile holds as many as it has room for, and all passes run on it in registers.

The sort is bitonic. The low bits of an index are compared most often: those are the keys within a thread.

Memory traffic of a level: the rows four times where groups are larger than a tile, else once; the order
and the keys, 8 bytes a token each, once written and about as often read. Caches hold most of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .op import LEAST, ROUNDS, SHARPNESS, TINY

_ROUNDS: tl.constexpr = tl.constexpr(ROUNDS)
_SHARPNESS: tl.constexpr = tl.constexpr(SHARPNESS * 1.4426950408889634)
"""Times log2(e), for exp2."""
_STEEPEST: tl.constexpr = tl.constexpr(120.0)
"""2 to the power of it is finite in float32, and a share of 2^-120 is as good as none."""
_LEAST: tl.constexpr = tl.constexpr(LEAST)
_TINY_SQUARED: tl.constexpr = tl.constexpr(TINY * TINY)
_BEYOND: tl.constexpr = tl.constexpr(0x7FFFFFFFFFFFFFFF)
"""A key after all others, for positions that a group does not have."""
_TOKEN: tl.constexpr = tl.constexpr(0xFFFF)
"""The bits of a key that are the token."""


@triton.jit
def balanced_clustering(
    q,
    batch,
    order,
    heads: tl.constexpr,
    tokens: tl.constexpr,
    dim: tl.constexpr,
    levels: tl.constexpr,
    large_levels: tl.constexpr,
    token_bits: tl.constexpr,
    dim_block: tl.constexpr,
    lanes: tl.constexpr,
    steps: tl.constexpr,
    run: tl.constexpr,
):
    """One program orders the tokens of one head of one image.

    q: (batch, heads, tokens, dim); order: (batch, heads, tokens) int64; tokens <= 2^token_bits, dim <= dim_block.
    large_levels: how many levels, the first ones, have groups of more than steps * lanes tokens.
    run: neighbours in the order that one thread sorts; no group may have fewer places.
    """
    head = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    q += head * tokens * dim
    order += head * tokens
    token = tl.arange(0, 2**token_bits)
    tl.store(order + token, token.to(tl.int64), mask=token < tokens)
    for level in range(levels):
        tl.debug_barrier()
        if large_levels > 0:  # noqa: SIM102, this one is decided by the compiler
            if level < large_levels:
                _write_keys(q, order, level, tokens, dim, dim_block, lanes, 1, steps // 4)
        for small in tl.static_range(large_levels, levels):
            if level == small:
                _write_keys(
                    q, order, small, tokens, dim, dim_block, lanes, min(2 ** (small - large_levels), lanes), steps
                )
        tl.debug_barrier()
        _sort(order, level, tokens, token_bits, run)


@triton.jit
def _write_keys(
    q,
    order,
    level,
    tokens: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    lanes: tl.constexpr,
    groups: tl.constexpr,
    steps: tl.constexpr,
):
    """Every token's key in its place, `groups` groups at a time.

    A tile has the axes (pieces of a row, steps, groups, lanes of a group, width of a piece). Where groups
    fit a tile, `level` is a constant, so the loops over tiles vanish, and the compiler sees that all passes
    read the same: it reads once.
    """
    lanes_each: tl.constexpr = lanes // groups
    size = tokens >> level
    step = tl.arange(0, steps)[:, None, None] * lanes_each + tl.arange(0, lanes_each)[None, None, :]
    for group in range(0, 1 << level, groups):
        places = order + (group + tl.arange(0, groups)[None, :, None]) * size
        first, second = _means(q, places, step, size, dim, dim_block)
        for _ in tl.static_range(_ROUNDS):
            first, second = _refined(q, places, step, size, first, second, dim, dim_block)
        for start in tl.range(0, size, steps * lanes_each, num_stages=3):
            position = start + step
            x = _rows(q, places, position, size, dim, dim_block)
            token = _tokens(places, position, size)
            ratio = (_cosines(x, first) + 1) / tl.maximum(_cosines(x, second) + 1, _LEAST)
            key = _key(tl.reshape(ratio, token.shape), position, token)
            tl.store(places + position, key, mask=position < size)


@triton.jit
def _means(q, places, step, size, dim: tl.constexpr, dim_block: tl.constexpr):
    """Mean tokens of each group's first and last half, at length 1."""
    half = size // 2
    first, second = _nothing(q, places, step, dim_block), _nothing(q, places, step, dim_block)
    for start in tl.range(0, size, step.shape[0] * step.shape[2], num_stages=3):
        x = _rows(q, places, start + step, size, dim, dim_block)
        in_first = (start + step < half).to(tl.float32)[None, :, :, :, None]
        first += tl.sum(x * in_first, 1, keep_dims=True)
        second += tl.sum(x * (1 - in_first), 1, keep_dims=True)
    # the sums are `half` times as long as the means
    shortest = _TINY_SQUARED * half * half
    return _normalised(first, shortest), _normalised(second, shortest)


@triton.jit
def _refined(q, places, step, size, first, second, dim: tl.constexpr, dim_block: tl.constexpr):
    """Centroids after one more round, at length 1: sums of the tokens by their shares."""
    away = (second - first) * _SHARPNESS
    first, second = _nothing(q, places, step, dim_block), _nothing(q, places, step, dim_block)
    for start in tl.range(0, size, step.shape[0] * step.shape[2], num_stages=3):
        x = _rows(q, places, start + step, size, dim, dim_block)
        odds = tl.exp2(tl.minimum(_cosines(x, away), _STEEPEST))
        share = 1 / (1 + odds)
        first += tl.sum(x * share, 1, keep_dims=True)
        second += tl.sum(x * (odds * share), 1, keep_dims=True)
    return _normalised(first, _TINY_SQUARED), _normalised(second, _TINY_SQUARED)


@triton.jit
def _nothing(q, places, step, dim_block: tl.constexpr):
    """A tile's sums over steps, to begin with. Adding to -0.0 changes no number, and compilers leave it out."""
    # The same threads read a row in two pieces, or in one if numbers are smaller. Not a function: Triton 3.6 would make
    # a tensor of the constant that it returns.
    width: tl.constexpr = dim_block if q.dtype.element_ty.primitive_bitwidth < 32 else max(dim_block // 2, 16)
    return tl.full((dim_block // width, 1, places.shape[1], step.shape[2], width), -0.0, tl.float32)


@triton.jit
def _tokens(places, position, size):
    """The tokens at these positions of their groups, whether or not another thread has put the key there."""
    return tl.load(places + position, mask=position < size, other=0).to(tl.int32) & _TOKEN


@triton.jit
def _rows(q, places, position, size, dim: tl.constexpr, dim_block: tl.constexpr):
    """The tile of the tokens at these positions of their groups, zero beyond a group's size.

    It is read as a matrix of rows and given its axes then: of five axes, Triton 3.6 and 3.7 give threads to others, and
    in 3.6 sums over tokens left their thread and tens of kilobytes their registers.
    """
    width: tl.constexpr = dim_block if q.dtype.element_ty.primitive_bitwidth < 32 else max(dim_block // 2, 16)
    pieces: tl.constexpr = dim_block // width
    row = _tokens(places, position, size)[None, :, :, :]
    tile: tl.constexpr = [pieces, row.shape[1], row.shape[2], row.shape[3], width]
    rows: tl.constexpr = tile[0] * tile[1] * tile[2] * tile[3]
    inside = tl.broadcast_to((position < size)[None, :, :, :], tile[:4])
    row = tl.reshape(tl.broadcast_to(row, tile[:4]), [rows])
    inside = tl.reshape(inside, [rows])
    channel = (tl.arange(0, rows) // (rows // pieces) * width)[:, None] + tl.arange(0, width)[None, :]
    x = tl.load(q + row[:, None] * dim + channel, mask=inside[:, None] & (channel < dim), other=0.0)
    return tl.reshape(x, tile).to(tl.float32)


@triton.jit
def _dot(x, y):
    return tl.sum(tl.sum(x * y, 0, keep_dims=True), 4, keep_dims=True)


@triton.jit
def _cosines(x, direction):
    """Products of the rows at length 1 with a direction; a row of length 0 is not normalised."""
    return _dot(x, direction) * tl.rsqrt(tl.maximum(_dot(x, x), _TINY_SQUARED))


@triton.jit
def _normalised(sums, shortest):
    """The sum over lanes at length 1, unless its length squared is below `shortest`."""
    vector = tl.sum(sums, 3, keep_dims=True)
    return vector * tl.rsqrt(tl.maximum(_dot(vector, vector), shortest))


@triton.jit
def _key(ratio, position, token):
    """int64 that compare as (ratio, position) do, -0.0 being 0.0."""
    bits = tl.where(ratio == 0, 0.0, ratio).to(tl.int32, bitcast=True)
    # the bits of positive floats compare as the floats do, those of negative ones the other way round
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits.to(tl.int64) << 32) | ((position << 16) | token).to(tl.int64)


@triton.jit
def _sort(order, level, tokens: tl.constexpr, token_bits: tl.constexpr, run: tl.constexpr):
    """Sorts the keys of each group, and leaves their tokens.

    Of 2^token_bits places every group has as many. Which of its keys start where in it does not matter:
    the threads of a warp read side by side, and each has `run` neighbouring places.
    """
    columns: tl.constexpr = 2**token_bits // run
    size = tokens >> level
    group_columns = columns >> level
    column = tl.arange(0, columns)[None, :]
    position = tl.arange(0, run)[:, None] * group_columns + column % group_columns
    places = order + column // group_columns * size + position
    keys = tl.load(places, mask=position < size, other=_BEYOND)
    keys = tl.reshape(tl.trans(keys), [2] * token_bits)
    group_bits = token_bits - level
    for stage in tl.static_range(1, token_bits + 1):
        if stage <= group_bits:
            keys = _merge(keys, stage, token_bits, group_bits)
    tl.debug_barrier()
    index = tl.arange(0, 2**token_bits)
    position = index & ((1 << group_bits) - 1)
    token = tl.reshape((keys & _TOKEN).to(tl.int32), (2**token_bits,)).to(tl.int64)
    tl.store(order + (index >> group_bits) * size + position, token, mask=position < size)


@triton.jit
def _merge(keys, stage: tl.constexpr, bits: tl.constexpr, group_bits):
    """Sorts bitonic runs of 2^stage keys: if a run is a group it rises, else every other run falls.

    keys: one axis of 2 for every bit of the index, the lowest last.
    """
    falls = _bit(stage, bits) & (stage < group_bits) if stage < bits else 0
    for below in tl.static_range(1, stage + 1):
        keys = _exchanged(keys, falls, stage - below, bits)
    return keys


@triton.jit
def _exchanged(keys, falls, bit: tl.constexpr, bits: tl.constexpr):
    """Pairs of keys whose indices differ in that bit alone, the lower key first unless the run falls."""
    other = tl.sum(keys, bits - 1 - bit, keep_dims=True) - keys
    return tl.where((keys > other) != (falls != _bit(bit, bits)), other, keys)


@triton.jit
def _bit(bit: tl.constexpr, bits: tl.constexpr):
    """That bit of every index, along its own axis."""
    return tl.reshape(tl.arange(0, 2), [1] * (bits - 1 - bit) + [2] + [1] * bit)

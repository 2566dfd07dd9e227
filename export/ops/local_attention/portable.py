# SPDX-License-Identifier: Apache-2.0
"""LocalAttention in standard operators: products of tiles.

A tile of t x t queries shares one span of keys, of which each query sees its window; the rest is
masked. That does more products than the windows have, but as dense matrices, where a copy of every
window is 49 times the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph import Builder, attribute, float_type, size
from .op import OP_TYPE

TILE = 14
"""Positions of the map that a tile of queries covers per side; measured: 14 wins or ties from 7x7 to 56x56."""
_HIDDEN = -3e4
"""Added to the logits of keys outside the window: far below any logit, and half of float16's range."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """One axis of a map, cut into tiles.

    Attributes:
        queries: (tiles * tile,), position of each query; those beyond the map repeat the last.
        keys: (tiles * span,), position of each key after reflection.
        seen: (tile, span), whether a query's window holds a key.
    """

    length: int
    tiles: int
    queries: Indices
    keys: Indices
    seen: NDArray[np.bool_]

    @classmethod
    def of(cls, length: int, window: int, stride: int, tile: int) -> Axis:
        """Cut `length` positions into tiles of `tile` queries."""
        outputs = -(-length // stride)
        tile = min(tile, outputs)
        tiles = -(-outputs // tile)
        span = (tile - 1) * stride + window
        queries = np.minimum(np.arange(tiles * tile) * stride, (outputs - 1) * stride)
        starts = np.arange(tiles) * tile * stride - window // 2
        keys = _reflected((starts[:, None] + np.arange(span)).reshape(-1), length)
        offset = np.arange(span) - stride * np.arange(tile)[:, None]
        return cls(outputs, tiles, queries, keys, (offset >= 0) & (offset < window))


def _reflected(positions: Indices, length: int) -> Indices:
    """Positions beyond the border, mirrored at it; far beyond, where no query looks, the border."""
    mirrored = (length - 1) - np.abs((length - 1) - np.abs(positions))
    inside: Indices = np.clip(mirrored, 0, length - 1)
    return inside


def expand(node: ir.Node) -> ir.Value:
    """The node's output (B, heads * d, H', W')."""
    q, k, v = node.inputs
    if q is None or k is None or v is None:
        raise ValueError(f"{node.name} lacks an input")
    window, stride = int(attribute(node, "window")), int(attribute(node, "stride"))
    tile = max(TILE // stride, 1)
    rows, columns = (Axis.of(size(q, axis), window, stride, tile) for axis in (2, 3))
    tiles = _Tiles(Builder(node, mixer_op=OP_TYPE), q, int(attribute(node, "heads")), rows, columns)
    return tiles.run(k, v, float(attribute(node, "scale")))


class _Tiles:
    """Writes the nodes of one attention."""

    def __init__(self, build: Builder, q: ir.Value, heads: int, rows: Axis, columns: Axis) -> None:
        self.build, self.q, self.heads, self.rows, self.columns = build, q, heads, rows, columns
        self.channels = size(q, 1)
        self.dtype = float_type(q)

    def run(self, k: ir.Value, v: ir.Value, scale: float) -> ir.Value:
        rows, columns = self.rows, self.columns
        seen = rows.seen[:, None, :, None] & columns.seen[None, :, None, :]
        mask = np.where(seen, 0, _HIDDEN).reshape(seen.shape[0] * seen.shape[1], -1).astype(self.dtype)
        scaled = self.build.op("Mul", [self.q, self.build.constant("scale", np.array(scale, self.dtype))])
        queries = self._tiles(scaled, rows.queries, columns.queries, perm=(0, 1, 3, 5, 4, 6, 2))
        keys = self._tiles(k, rows.keys, columns.keys, perm=(0, 1, 3, 5, 2, 4, 6))
        values = self._tiles(v, rows.keys, columns.keys, perm=(0, 1, 3, 5, 4, 6, 2))
        logits = self.build.op("Add", [self.build.op("MatMul", [queries, keys]), self.build.constant("mask", mask)])
        mixed = self.build.op("MatMul", [self.build.op("Softmax", [logits], axis=-1), values])
        return self._map(mixed)

    def _tiles(self, x: ir.Value, rows: Indices, columns: Indices, perm: tuple[int, ...]) -> ir.Value:
        """(B, C, H, W) -> (B, heads, tiles, n, d), or (.., d, n) where `perm` puts d before the positions."""
        strips = self.build.op("Gather", [x, self.build.ints("rows", *rows)], axis=2)
        picked = self.build.op("Gather", [strips, self.build.ints("columns", *columns)], axis=3)
        tall, wide = len(rows) // self.rows.tiles, len(columns) // self.columns.tiles
        dim = self.channels // self.heads
        cut = self._reshape(picked, self.heads, dim, self.rows.tiles, tall, self.columns.tiles, wide)
        turned = self.build.op("Transpose", [cut], perm=perm)
        matrix = (dim, tall * wide) if perm[4] == 2 else (tall * wide, dim)
        return self._reshape(turned, self.heads, self.rows.tiles * self.columns.tiles, *matrix)

    def _map(self, mixed: ir.Value) -> ir.Value:
        """(B, heads, tiles, n, d) -> (B, C, H', W')."""
        tall, wide = self.rows.seen.shape[0], self.columns.seen.shape[0]
        dim = self.channels // self.heads
        cut = self._reshape(mixed, self.heads, self.rows.tiles, self.columns.tiles, tall, wide, dim)
        turned = self.build.op("Transpose", [cut], perm=(0, 1, 6, 2, 4, 3, 5))
        whole = self._reshape(turned, self.channels, self.rows.tiles * tall, self.columns.tiles * wide)
        for axis, along in ((2, self.rows), (3, self.columns)):
            if along.length < along.tiles * along.seen.shape[0]:
                bounds = (self.build.ints("bounds", n) for n in (0, along.length, axis))
                whole = self.build.op("Slice", [whole, *bounds])
        return whole

    def _reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        return self.build.op("Reshape", [x, self.build.ints("shape", 0, *shape)])

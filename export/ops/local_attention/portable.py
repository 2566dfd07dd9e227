# SPDX-License-Identifier: Apache-2.0
"""LocalAttention in standard operators: products of tiles.

A tile of t x t queries shares one span of keys, of which each query sees its window; the rest is
masked. That does more products than the windows have, but as dense matrices, where a copy of every
window is 49 times the map. Tiles are put together from rows of channels, one for each position: a
runtime copies rows, but moves single numbers to cut a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph import Builder, attribute, float_type, size
from .op import OP_TYPE

TILE = 7
"""Positions of the map of keys that the queries of a tile lie in, per side. Measured in ACmix-ResNet-26 in both
CPU runtimes: 7 and 4 tie, 14 takes longer."""
WHOLE = 14
"""Up to so many queries per side are one tile."""
_HIDDEN = -3e4
"""Added to the logits of keys outside the window: far below any logit, and half of float16's range."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """One axis of a map, cut into tiles.

    Attributes:
        length: of the map of keys.
        outputs: of the map of queries.
        queries: (tiles, tile), position of each query; those beyond the map repeat the last.
        keys: (tiles, span), position of each key.
        times: (tile, span), how often a query's window holds a key.
    """

    length: int
    outputs: int
    queries: Indices
    keys: Indices
    times: Indices

    @classmethod
    def of(cls, length: int, window: int, stride: int, tile: int) -> Axis:
        """Cut `length` positions into tiles of `tile` queries."""
        outputs = -(-length // stride)
        if outputs <= WHOLE:
            return cls._whole(length, outputs, window, stride)
        tiles = -(-outputs // tile)
        span = (tile - 1) * stride + window
        queries = np.minimum(np.arange(tiles * tile), outputs - 1) * stride
        starts = np.arange(tiles) * tile * stride - window // 2
        keys = _reflected(starts[:, None] + np.arange(span), length)
        offset = np.arange(span) - stride * np.arange(tile)[:, None]
        seen = (offset >= 0) & (offset < window)
        return cls(length, outputs, queries.reshape(tiles, tile), keys, seen.astype(np.int64))

    @classmethod
    def _whole(cls, length: int, outputs: int, window: int, stride: int) -> Axis:
        """One tile with every key once; by reflection a window can hold it twice."""
        queries = np.arange(outputs) * stride
        held = _reflected(queries[:, None] + np.arange(window) - window // 2, length)
        times = (held[:, :, None] == np.arange(length)).sum(1)
        return cls(length, outputs, queries[None], np.arange(length)[None], times)


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
    tile = -(-TILE // stride)
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
        scaled = self.build.op("Mul", [self.q, self.build.constant("scale", np.array(scale, self.dtype))])
        queries = self._tiles(scaled, _pixels(self.rows.queries, self.columns.queries, self.columns.length))
        spans = _pixels(self.rows.keys, self.columns.keys, self.columns.length)
        keys, values = self._tiles(k, spans), self._tiles(v, spans)
        last = 3 if len(spans) > 1 else 2
        turned = self.build.op("Transpose", [keys], perm=[*range(last), last + 1, last])
        products = self.build.op("MatMul", [queries, turned])
        logits = self.build.op("Add", [products, self.build.constant("mask", self._mask())])
        return self._map(self.build.op("MatMul", [self.build.op("Softmax", [logits], axis=-1), values]))

    def _mask(self) -> NDArray[np.floating]:
        """(n, m), added to the logits: a key that a window holds twice counts twice."""
        times = self.rows.times[:, None, :, None] * self.columns.times[None, :, None, :]
        with np.errstate(divide="ignore"):
            logarithms = np.where(times > 0, np.log(times), _HIDDEN)
        mask: NDArray[np.floating] = logarithms.reshape(-1, times.shape[2] * times.shape[3]).astype(self.dtype)
        return mask

    def _tiles(self, x: ir.Value, pixels: Indices) -> ir.Value:
        """(B, C, H, W) -> (B, heads, tiles, n, d), or (B, heads, n, d) of one tile."""
        flat = self._reshape(x, self.heads, self.channels // self.heads, self.rows.length * self.columns.length)
        rows = self.build.op("Transpose", [flat], perm=(0, 1, 3, 2))
        return self._picked(rows, pixels if len(pixels) > 1 else pixels[0], self.rows.length * self.columns.length)

    def _map(self, mixed: ir.Value) -> ir.Value:
        """(B, heads, tiles, n, d) -> (B, C, H', W')."""
        tall, wide = self.rows.queries.shape[1], self.columns.queries.shape[1]
        of_row, of_column = np.arange(self.rows.outputs), np.arange(self.columns.outputs)
        tile = (of_row // tall)[:, None] * len(self.columns.queries) + of_column // wide
        places = ((tile * tall + (of_row % tall)[:, None]) * wide + of_column % wide).reshape(-1)
        tiles = len(self.rows.queries) * len(self.columns.queries)
        dim = self.channels // self.heads
        flat = mixed if tiles == 1 else self._reshape(mixed, self.heads, tiles * tall * wide, dim)
        ordered = self._picked(flat, places, tiles * tall * wide)
        turned = self.build.op("Transpose", [ordered], perm=(0, 1, 3, 2))
        return self._reshape(turned, self.channels, self.rows.outputs, self.columns.outputs)

    def _picked(self, rows: ir.Value, places: Indices, available: int) -> ir.Value:
        """Rows of (B, heads, available, d) in another order, unless it is the same."""
        if np.array_equal(places, np.arange(available)):
            return rows
        return self.build.op("Gather", [rows, self.build.constant("places", places)], axis=2)

    def _reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        return self.build.op("Reshape", [x, self.build.ints("shape", 0, *shape)])


def _pixels(rows: Indices, columns: Indices, width: int) -> Indices:
    """(tiles of both axes, positions of a tile): places in a map of that width, row by row."""
    pixels = rows[:, None, :, None] * width + columns[None, :, None, :]
    return pixels.reshape(len(rows) * len(columns), -1)

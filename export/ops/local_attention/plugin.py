# SPDX-License-Identifier: Apache-2.0
"""LocalAttention's GPU kernel as data: a program for every image, head and tile of queries."""

from __future__ import annotations

from typing import Any

from ..kernel import Attributes, Kernel, Launch, Shapes, power_of_two

_LEAST = 16
"""Rows, columns and terms that Triton's matrix product has at least."""
_QUERIES = 64
"""Of a tile, at most; four warps take 16 each. Half as many where their channels do not stay in registers: in float32
all of them would then need 66 KiB of shared memory, and a launch with more than 48 KiB has to ask the driver first.
"""
_KEYS = 32
"""At a time."""
_COLUMNS = 8
"""Of a tile: 32 bytes of a row in float32, and queries 8 apart share a mask."""
_LARGEST_DIM = 128
_KEPT_DIM = 64
"""Channels of the queries, and of the sums of values, that registers hold."""


def _load() -> Any:
    from .kernel import local_attention

    return local_attention


def _output_shape(shapes: Shapes, attributes: Attributes) -> tuple[Any, ...]:
    batch, channels, height, width = shapes["q"]
    stride = int(attributes["stride"])
    return batch, channels, (height + (stride - 1)) // stride, (width + (stride - 1)) // stride


def _refusal(shapes: Shapes, attributes: Attributes) -> str:
    _, channels, height, width = (int(size) for size in shapes["q"])
    window, dim = int(attributes["window"]), channels // int(attributes["heads"])
    if min(height, width) <= window // 2:
        return (
            f"LocalAttention mirrors half a window of {window} at the border, more than maps of {height}x{width} have"
        )
    if dim > _LARGEST_DIM:
        return f"LocalAttention's kernel takes heads of at most {_LARGEST_DIM} channels, got {dim}"
    return ""


def _launch(shapes: Shapes, attributes: Attributes) -> Launch:
    _, channels, height, width = (int(size) for size in shapes["q"])
    heads, window, stride = (int(attributes[name]) for name in ("heads", "window", "stride"))
    dim, out_height, out_width = channels // heads, -(-height // stride), -(-width // stride)
    query_block, dim_block, value_block = _blocks(dim)
    rows = _tile_rows(out_height, window, stride, query_block)
    constants = {
        "heads": heads,
        "dim": dim,
        "height": height,
        "width": width,
        "window": window,
        "stride": stride,
        "scale": float(attributes["scale"]),
        "tile_rows": rows,
        "tile_columns": _COLUMNS,
        "query_block": query_block,
        "key_block": _KEYS,
        "dim_block": dim_block,
        "value_block": value_block,
    }
    tiles = -(-out_height // rows) * -(-out_width // _COLUMNS)
    return Launch(constants, programs=(tiles, heads * -(-dim // value_block)))


def _blocks(dim: int) -> tuple[int, int, int]:
    """Queries, channels of their products with keys, and channels of values at a time: what four warps hold."""
    whole = power_of_two(dim, _LEAST)
    if whole <= _KEPT_DIM:
        return _QUERIES, whole, whole
    return _QUERIES // 2, _KEPT_DIM // 2, _KEPT_DIM


def _tile_rows(out_height: int, window: int, stride: int, query_block: int) -> int:
    """Rows of a tile: more share more keys, but each query is multiplied with all keys that its tile sees."""
    across = (_COLUMNS - 1) * stride + window

    def work(rows: int) -> int:
        keys = ((rows - 1) * stride + window) * across
        return -(-out_height // rows) * -(-keys // _KEYS)

    return min(range(1, query_block // _COLUMNS + 1), key=work)


KERNEL = Kernel(
    load=_load,
    inputs={"q": "float", "k": "float", "v": "float"},
    attributes={"heads": int, "window": int, "stride": int, "scale": float},
    output="float",
    output_shape=_output_shape,
    launch=_launch,
    refusal=_refusal,
)

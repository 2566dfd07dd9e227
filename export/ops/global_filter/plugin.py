# SPDX-License-Identifier: Apache-2.0
"""GlobalFilter's kernel and how it is launched."""

from __future__ import annotations

from typing import Any

from ..kernel import Attributes, Kernel, Launch, Shapes, power_of_two

_LARGEST = 32
"""Rows or columns: the matrices of a larger map do not fit a program's memory."""
_PIXELS = 1024
"""Of all images that a program transforms at once: 4 of 14x14, in blocks of 16x16."""
_ROUNDS = 4
"""How often a program does that with one filter and one set of matrices."""
_LEAST = 16
"""Of every axis of a matrix product in Triton."""


def _load() -> Any:
    from .kernel import global_filter

    return global_filter


def _blocks(shapes: Shapes) -> tuple[int, int, int]:
    """Powers of two for rows, columns and frequencies."""
    height, width = (int(size) for size in shapes["x"][2:])
    rows, columns = power_of_two(height, _LEAST), power_of_two(width, _LEAST)
    return rows, columns, power_of_two(width // 2 + 1, _LEAST // 2)


def _launch(shapes: Shapes, attributes: Attributes) -> Launch:
    channels, height, width = (int(size) for size in shapes["x"][1:])
    rows, columns, frequencies = _blocks(shapes)
    images = max(_PIXELS // (rows * columns), _LEAST // frequencies, 1)
    constants = {
        "channels": channels,
        "height": height,
        "width": width,
        "H": rows,
        "W": columns,
        "F": frequencies,
        "IMAGES": images,
        "ROUNDS": _ROUNDS,
    }
    warps = 8 if rows * columns >= _PIXELS else 4
    return Launch(constants, programs=(channels, 1), images=images * _ROUNDS, warps=warps)


def _refusal(shapes: Shapes, attributes: Attributes) -> str:
    height, width = (int(size) for size in shapes["x"][2:])
    if max(height, width) > _LARGEST:
        return f"GlobalFilter's kernel takes maps of at most {_LARGEST}x{_LARGEST}, got {height}x{width}"
    return ""


KERNEL = Kernel(
    load=_load,
    inputs={"x": "float", "weight": "fp32"},
    attributes={"height": int, "width": int},
    output="float",
    output_shape=lambda shapes, attributes: tuple(shapes["x"]),
    launch=_launch,
    refusal=_refusal,
)

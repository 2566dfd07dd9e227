# SPDX-License-Identifier: Apache-2.0
"""BalancedClustering's GPU kernel as data: a program for every image and head."""

from __future__ import annotations

from typing import Any

from ..kernel import Attributes, Kernel, Launch, Shapes, power_of_two

_MOST_TOKENS = 4096
"""Of a head: one program sorts them all."""
_LARGEST_DIM = 128
_LEAST_DIM = 16
_STEPS = 8
"""Rows of a tile that a thread reads a part of; half as many where it has half the registers."""
_TOKENS_PER_WARP = 64
"""So that a head of up to 512 tokens is one tile."""
_MOST_WARPS = 16
"""A thread then has 128 registers at most, which a tile of 4 steps and a sort of 8 keys need."""
_READ_BY_WARP = 128
"""Numbers of float32: 16 bytes a thread."""
_WARP = 32


def _load() -> Any:
    from .kernel import balanced_clustering

    return balanced_clustering


def _output_shape(shapes: Shapes, attributes: Attributes) -> tuple[Any, ...]:
    return tuple(shapes["q"])[:3]


def _refusal(shapes: Shapes, attributes: Attributes) -> str:
    _, _, tokens, dim = shapes["q"]
    if tokens > _MOST_TOKENS or dim > _LARGEST_DIM:
        return (
            f"BalancedClustering's kernel takes heads of at most {_MOST_TOKENS} tokens and {_LARGEST_DIM} channels, "
            f"got {tokens} and {dim}"
        )
    cluster_size, levels = int(attributes["cluster_size"]), int(attributes["levels"])
    if tokens != cluster_size << levels:
        return f"BalancedClustering splits {cluster_size} * 2^{levels} tokens, got {tokens}"
    return ""


def _launch(shapes: Shapes, attributes: Attributes) -> Launch:
    heads, tokens, dim = (int(size) for size in shapes["q"][1:])
    levels = int(attributes["levels"])
    groups = [tokens >> level for level in range(levels)]
    dim_block, token_block = power_of_two(dim, _LEAST_DIM), power_of_two(tokens)
    warps = min(max(token_block // _TOKENS_PER_WARP, 1), _MOST_WARPS)
    steps = _STEPS if warps < _MOST_WARPS else _STEPS // 2
    lanes = warps * _READ_BY_WARP // max(dim_block // 2, _LEAST_DIM)
    constants = {
        "heads": heads,
        "tokens": tokens,
        "dim": dim,
        "levels": levels,
        "large_levels": sum(size > lanes * steps for size in groups),
        "token_bits": token_block.bit_length() - 1,
        "dim_block": dim_block,
        "lanes": lanes,
        "steps": steps,
        "run": min([max(token_block // (warps * _WARP), 1), *(power_of_two(size) for size in groups)]),
    }
    return Launch(constants, programs=(heads, 1), warps=warps)


KERNEL = Kernel(
    load=_load,
    inputs={"q": "float"},
    attributes={"cluster_size": int, "levels": int},
    output="i64",
    output_shape=_output_shape,
    launch=_launch,
    refusal=_refusal,
)

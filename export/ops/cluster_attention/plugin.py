# SPDX-License-Identifier: Apache-2.0
"""ClusterAttention's GPU kernel as data: a program for every image, head and cluster."""

from __future__ import annotations

from typing import Any

from ..kernel import Attributes, Kernel, Launch, Shapes, power_of_two

_LEAST = 16
"""Rows, columns and terms that Triton's matrix product has at least."""
_LARGEST_BLOCK = 64
"""Queries, and keys, of one matrix product; more do not fit in registers."""
_LARGEST_DIM = 128
_CHANNELS = 32
"""Taken at a time: 128 bytes of a row in float32."""


def _load() -> Any:
    from .kernel import cluster_attention

    return cluster_attention


def _output_shape(shapes: Shapes, attributes: Attributes) -> tuple[Any, ...]:
    return tuple(shapes["q"])


def _refusal(shapes: Shapes, attributes: Attributes) -> str:
    _, _, tokens, dim = shapes["q"]
    cluster_size, overlap = int(attributes["cluster_size"]), int(attributes["overlap"])
    if tokens != cluster_size and tokens % (2 * cluster_size):
        return f"ClusterAttention needs one cluster or pairs of clusters of {cluster_size} tokens, got {tokens} tokens"
    if overlap > cluster_size:
        return f"ClusterAttention borrows tokens of one cluster of {cluster_size}, got an overlap of {overlap}"
    if cluster_size > _LARGEST_BLOCK or dim > _LARGEST_DIM:
        return (
            f"ClusterAttention's kernel holds up to {_LARGEST_BLOCK} tokens of up to {_LARGEST_DIM} channels, "
            f"got clusters of {cluster_size} of {dim} channels"
        )
    return ""


def _launch(shapes: Shapes, attributes: Attributes) -> Launch:
    _, heads, tokens, dim = shapes["q"]
    cluster_size = int(attributes["cluster_size"])
    overlap = int(attributes["overlap"]) if tokens > cluster_size else 0
    key_block, rest_block = _key_blocks(cluster_size + overlap)
    constants = {
        "heads": heads,
        "tokens": tokens,
        "dim": dim,
        "cluster_size": cluster_size,
        "overlap": overlap,
        "scale": float(attributes["scale"]),
        "query_block": power_of_two(cluster_size, _LEAST),
        "key_block": key_block,
        "rest_block": rest_block,
        "dim_block": min(power_of_two(dim, _LEAST), _CHANNELS),
    }
    return Launch(constants, programs=(heads, tokens // cluster_size))


def _key_blocks(keys: int) -> tuple[int, int]:
    """Sizes of the blocks that hold up to 2 * 64 keys with the least room left over; the second may be 0."""
    whole = power_of_two(keys, _LEAST)
    if whole == _LEAST:
        return whole, 0
    rest = power_of_two(keys - whole // 2, _LEAST)
    return (whole // 2, rest) if whole > _LARGEST_BLOCK or whole // 2 + rest < whole else (whole, 0)


KERNEL = Kernel(
    load=_load,
    inputs={"q": "float", "k": "float", "v": "float", "order": "i64"},
    attributes={"cluster_size": int, "overlap": int, "scale": float},
    output="float",
    output_shape=_output_shape,
    launch=_launch,
    refusal=_refusal,
)

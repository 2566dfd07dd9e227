# SPDX-License-Identifier: Apache-2.0
"""Feature-space local attention: attention among tokens that are alike, wherever they are in the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLUSTER = 49
OVERLAP = 20
_SHARPNESS = 100.0
_ROUNDS = 2
_LEAST = 1e-7
"""Lower bound of the ratio's denominator: a token opposite to both centroids has no ratio otherwise."""


def levels_of(tokens: int) -> int:
    """How often a sequence is halved until clusters of 49 are left; ValueError unless it is 49 * 2^k long."""
    levels = (tokens // CLUSTER).bit_length() - 1
    if levels < 0 or tokens != CLUSTER << levels:
        raise ValueError(f"balanced clustering needs 49 * 2^k tokens, got {tokens}")
    return levels


def balanced_clustering(q: Tensor, levels: int) -> Tensor:
    """Order tokens so that every run of N / 2^levels of them is one cluster of similar tokens.

    Each level splits every group of the level above into halves: two centroids, starting from the
    means of the group's first and last half in the current order, are refined twice; the tokens
    are then sorted by their ratio of similarities, and each half is a group.

    Args:
        q: (B, heads, N, d), N a multiple of 2^levels.
        levels: number of halvings; 0 leaves the order of the image.

    Returns:
        (B, heads, N) int64, indices of tokens. Tokens with equal ratios keep their current order, so
        constant tokens come lower index first. Computed in at least float32.

    Source: BOAT (Yu et al. 2022), section 3.2, "balanced hierarchical clustering".
    """
    if torch.compiler.is_exporting():
        exported: Tensor = torch.onnx.ops.symbolic(
            "metaformer::BalancedClustering",
            (q,),
            attrs={"levels": levels, "cluster_size": q.shape[2] >> levels},
            dtype=torch.int64,
            shape=q.shape[:3],
            version=1,
        )
        return exported
    tokens = q.to(torch.promote_types(q.dtype, torch.float32))
    unit = F.normalize(tokens, dim=-1)
    order = torch.arange(q.shape[2], device=q.device).expand(q.shape[:3])
    for level in range(levels):
        order = _split(tokens, unit, order, 2**level)
    return order


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """(B, heads, N, d) -> its rows in the given order. (take_along_dim fixes the batch size in torch.export.)"""
    return x.gather(2, order[..., None].expand_as(x))


def _split(tokens: Tensor, unit: Tensor, order: Tensor, groups: int) -> Tensor:
    """One level: (B, heads, N) order -> the order in which every group is sorted."""
    shape = (*order.shape[:2], groups, -1)
    grouped_order = order.reshape(shape)
    grouped, directions = (_rows(each, order).reshape(*shape, each.shape[-1]) for each in (tokens, unit))
    half = grouped.shape[3] // 2
    means = torch.stack((grouped[..., :half, :].mean(3), grouped[..., half:, :].mean(3)), 3)
    centroids = F.normalize(means, dim=-1)
    for _ in range(_ROUNDS):
        weights = (_SHARPNESS * (directions @ centroids.transpose(-2, -1))).softmax(-1)
        centroids = F.normalize(weights.transpose(-2, -1) @ grouped, dim=-1)
    similar = directions @ centroids.transpose(-2, -1) + 1
    ratio = similar[..., 0] / similar[..., 1].clamp_min(_LEAST)
    return grouped_order.gather(-1, ratio.argsort(dim=-1, stable=True)).reshape(order.shape)


def cluster_attention(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, cluster_size: int, overlap: int, scale: float
) -> Tensor:
    """Softmax attention inside clusters; the two clusters of one split lend each other `overlap` keys.

    The first of a pair also sees the first `overlap` tokens of the second, the second the last
    `overlap` of the first. A single cluster has nothing to borrow.

    Args:
        q, k, v: (B, heads, N, d) in the order of the image.
        order: (B, heads, N) int64 from `balanced_clustering`.
        cluster_size: tokens of a cluster; divides N, and N is one cluster or an even number of them.
        overlap: keys borrowed, at most cluster_size.
        scale: factor on the logits.

    Returns:
        (B, heads, N, d) in the order of the image.

    Source: BOAT (Yu et al. 2022), section 3.2, "overlapping balanced hierarchical clustering".
    """
    if torch.compiler.is_exporting():
        exported: Tensor = torch.onnx.ops.symbolic(
            "metaformer::ClusterAttention",
            (q, k, v, order),
            attrs={"cluster_size": cluster_size, "overlap": overlap, "scale": scale},
            dtype=q.dtype,
            shape=q.shape,
            version=1,
        )
        return exported
    shape = (*order.shape[:2], -1, cluster_size, q.shape[-1])
    queries, keys, values = (_rows(each, order).reshape(shape) for each in (q, k, v))
    if keys.shape[2] > 1:
        keys, values = _with_neighbours(keys, overlap), _with_neighbours(values, overlap)
    mixed = ((queries * scale) @ keys.transpose(-2, -1)).softmax(-1) @ values
    return torch.empty_like(q).scatter_(2, order[..., None].expand_as(q), mixed.reshape(q.shape))


def _with_neighbours(clusters: Tensor, overlap: int) -> Tensor:
    """(B, heads, clusters, size, d) -> (B, heads, clusters, size + overlap, d)."""
    first, second = clusters[:, :, ::2], clusters[:, :, 1::2]
    first, second = (
        torch.cat((first, second[..., :overlap, :]), -2),
        torch.cat((first[..., first.shape[-2] - overlap :, :], second), -2),
    )
    return torch.stack((first, second), 3).flatten(2, 3)


class BalancedClustering(nn.Module):
    """`balanced_clustering` into clusters of 49, as a module of its own so that its decisions can be observed."""

    def forward(self, q: Tensor) -> Tensor:
        return balanced_clustering(q, levels_of(q.shape[2]))


class FeatureSpaceAttention(nn.Module):
    """Attention inside clusters of 49 similar tokens, plus a depthwise 3x3 of the values (LePE).

    (B, H, W, dim) -> (B, H, W, dim), H * W = 49 * 2^k.

    Args:
        scale: factor on the logits; None is head_dim^-0.5.

    Source: BOAT (Yu et al. 2022), section 3.2, "feature-space local attention".
    """

    def __init__(self, dim: int, heads: int, scale: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5 if scale is None else scale
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.clustering = BalancedClustering()

    def forward(self, x: Tensor) -> Tensor:
        height, width, dim = x.shape[1:]
        # Queries apart from keys and values: they decide the clusters, and stay in float32 where the rest does not.
        q = self._heads(F.linear(x, self.qkv.weight[:dim], self.qkv.bias[:dim]))
        keys, values = F.linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:]).chunk(2, -1)
        order = self.clustering(q)
        mixed = cluster_attention(
            q, self._heads(keys), self._heads(values), order, min(CLUSTER, height * width), OVERLAP, self.scale
        )
        mixed = mixed.transpose(1, 2).reshape(-1, height, width, dim)
        local = self.get_v(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = self.proj(mixed + local)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, heads, H * W, dim / heads)."""
        return x.reshape(-1, x.shape[1] * x.shape[2], self.heads, x.shape[3] // self.heads).transpose(1, 2)

# SPDX-License-Identifier: Apache-2.0
"""At what sizes the families run the mixer ops, from the variants' own numbers: no model is built or traced.

A new variant follows by itself; a family or a neck with mixer ops of its own needs a function in the table here.
tests/export/ops/test_sizes.py holds all of it against what every model emits when it is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ...models import registry
from ...models.acmix_resnet import FAMILY as ACMIX_RESNET
from ...models.boat_cswin import FAMILY as BOAT_CSWIN
from ...models.boat_swin import FAMILY as BOAT_SWIN
from ...models.family import Family, Neck, Variant
from ...models.hornet import FAMILY as HORNET
from ...models.mixers.feature_space_attention import CLUSTER, OVERLAP, levels_of
from ...models.necks.horfpn import HORFPN_GF
from .use import Use

_STEM = 4
"""Pixels of one position of the first stage's map; every stage halves the map of the one before."""
_STAGES = range(4)


def all_uses() -> list[Use]:
    """What any variant, with any of its necks, runs at its own image size: each once, in the registry's order."""
    found: list[Use] = []
    for family, variant in registry.variants():
        for use in (*uses_of(family, variant), *(each for neck in family.necks for each in uses_in(neck, variant))):
            if use not in found:
                found.append(use)
    return found


def uses_of(family: Family, variant: Variant) -> list[Use]:
    """The mixer ops of a variant at its own image size, stage by stage, each once."""
    return list(_OF_FAMILY[family.name](variant)) if variant.mixer_ops else []


def uses_in(neck: Neck, variant: Variant) -> list[Use]:
    """Those that a neck adds to that variant."""
    return list(_OF_NECK[neck.name](variant)) if neck.mixer_ops else []


def _side(variant: Variant, stage: int) -> int:
    """Positions along one side of a stage's map."""
    return variant.image_size // _STEM >> stage


def _filter(channels: int, side: int) -> Use:
    shapes = {"x": (-1, channels, side, side), "weight": (channels, side, side // 2 + 1, 2)}
    return Use("GlobalFilter", shapes, {"height": side, "width": side})


def _filtered_gates(dim: int, order: int) -> int:
    """Channels that a gnConv filters globally: half of the gates', which are dim, dim / 2, ... of each order."""
    return sum(dim >> i for i in range(order)) // 2


def _hornet(variant: Variant) -> Iterator[Use]:
    for stage, (dim, filter_size) in enumerate(zip(variant.config.dims, variant.config.filters, strict=True)):
        if filter_size is not None:
            yield _filter(_filtered_gates(dim, stage + 2), _side(variant, stage))


def _horfpn(variant: Variant) -> Iterator[Use]:
    """One filter for each stage map: gnConvs of order 2 on 256 channels."""
    for stage in _STAGES:
        yield _filter(_filtered_gates(256, 2), _side(variant, stage))


def _clustered(tokens: int, heads: int, dim: int, scale: float) -> Iterator[Use]:
    """Attention in feature space: tokens are clustered, then attend inside their clusters. dim is a head's."""
    q = (-1, heads, tokens, dim)
    yield Use("BalancedClustering", {"q": q}, {"cluster_size": CLUSTER, "levels": levels_of(tokens)})
    inputs = {"q": q, "k": q, "v": q, "order": q[:-1]}
    yield Use("ClusterAttention", inputs, {"cluster_size": CLUSTER, "overlap": OVERLAP, "scale": scale})


def _boat_swin(variant: Variant) -> Iterator[Use]:
    """Shifted blocks, which are the second ones; the last stage is one window and has none."""
    for stage in _STAGES[:-1]:
        if variant.config.depths[stage] > 1:
            heads = variant.config.heads[stage]
            dim = variant.config.width * 2**stage // heads
            yield from _clustered(_side(variant, stage) ** 2, heads, dim, dim**-0.5)


def _boat_cswin(variant: Variant) -> Iterator[Use]:
    """The first block of every stage, with logits as they are: the authors' scale is 1."""
    for stage in _STAGES:
        heads = variant.config.heads[stage]
        yield from _clustered(_side(variant, stage) ** 2, heads, variant.config.width * 2**stage // heads, 1.0)


def _acmix_resnet(variant: Variant) -> Iterator[Use]:
    """The first block of every later stage takes every second position of the map before; the others take all."""
    for stage, depth in enumerate(variant.config):
        if stage:
            yield _local(64 * 2**stage, _side(variant, stage - 1), stride=2)
        if not stage or depth > 1:
            yield _local(64 * 2**stage, _side(variant, stage), stride=1)


def _local(channels: int, side: int, *, stride: int, heads: int = 4) -> Use:
    attributes = {"heads": heads, "window": 7, "stride": stride, "scale": (channels // heads) ** -0.5}
    return Use("LocalAttention", dict.fromkeys("qkv", (-1, channels, side, side)), attributes)


_OF_FAMILY: Mapping[str, Callable[[Variant], Iterator[Use]]] = {
    HORNET.name: _hornet,
    BOAT_SWIN.name: _boat_swin,
    BOAT_CSWIN.name: _boat_cswin,
    ACMIX_RESNET.name: _acmix_resnet,
}
_OF_NECK: Mapping[str, Callable[[Variant], Iterator[Use]]] = {HORFPN_GF.name: _horfpn}

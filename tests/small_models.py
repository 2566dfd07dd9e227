# SPDX-License-Identifier: Apache-2.0
"""Small models of every kind: what several tests trace and export in seconds, each once in a process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from unittest import mock

import onnx_ir as ir
import pytest
import support
from torch import nn

from metaformer_export.artifacts import Traced
from metaformer_export.export import trace as tracing
from metaformer_export.export.stand_in import is_computed_with
from metaformer_export.models import (
    acmix_resnet,
    acmix_swin,
    boat_cswin,
    boat_swin,
    focalnet,
    hornet,
    metaformer_baselines,
    poolformer,
)
from metaformer_export.models.family import BuildOptions, Family
from metaformer_export.models.swin import SwinConfig

_FOUR = {"depths": (1, 1, 2, 1), "dims": (32, 32, 64, 64)}
_POOL = poolformer.PoolFormerConfig(**_FOUR)
_CONV = metaformer_baselines.BaselineConfig(**_FOUR, mixers=("conv",) * 4, token_norm=True)
_SWIN = SwinConfig(16, (2, 2, 2, 1), (1, 2, 4, 8))
_FOCAL = focalnet.FocalNetConfig(16, (1, 1, 2, 1), 2)

KINDS: dict[str, tuple[Family, object]] = {
    "poolformer": (poolformer.FAMILY, _POOL),
    "metaformer_ppaa": (
        poolformer.FAMILY,
        replace(_POOL, mixers=("pool", "pool", "attention", "attention"), channel_norm=True, pos_embed=2),
    ),
    "metaformer_ppff": (poolformer.FAMILY, replace(_POOL, mixers=("pool", "pool", "spatial_fc", "spatial_fc"))),
    "poolformerv2": (metaformer_baselines.FAMILY, replace(_CONV, mixers=("pool",) * 4, token_norm=False)),
    "randformer": (
        metaformer_baselines.FAMILY,
        replace(_CONV, mixers=("identity", "identity", "random", "random"), token_norm=False),
    ),
    "convformer": (metaformer_baselines.FAMILY, _CONV),
    "caformer": (metaformer_baselines.FAMILY, replace(_CONV, mixers=("conv", "conv", "attention", "attention"))),
    "focalnet": (focalnet.FAMILY, _FOCAL),
    "focalnet_huge": (
        focalnet.FAMILY,
        replace(_FOCAL, levels=3, conv_embed=True, layer_scale=True, post_norm=True, norm_in_modulation=True),
    ),
    "focalnet_large_fl4": (
        focalnet.FAMILY,
        replace(_FOCAL, levels=4, conv_embed=True, layer_scale=True, post_norm=True, normalize=True),
    ),
    "focalnet_iso": (focalnet.FAMILY, focalnet.FocalNetConfig(32, (3,), 3, patch=16)),
    "hornet": (hornet.FAMILY, support.SMALL),
    "hornet_gf": (hornet.FAMILY, support.SMALL_GF),
    "boat_swin": (boat_swin.FAMILY, _SWIN),
    "boat_cswin": (boat_cswin.FAMILY, boat_cswin.BoatCSWinConfig(16, (1, 1, 2, 1), (2, 2, 4, 8))),
    "acmix_swin": (acmix_swin.FAMILY, _SWIN),
    "acmix_resnet": (acmix_resnet.FAMILY, (1, 1, 1, 1)),
}
SIDES = dict.fromkeys(
    ("metaformer_ppaa", "metaformer_ppff", "randformer", "boat_swin", "boat_cswin", "acmix_swin"), (224, 224)
) | {"acmix_resnet": (128, 160)}
"""Image sizes of kinds that do not run at 64x96."""

_OF_OTHERS = ("poolformerv2", "convformer", "hornet")
"""Kinds of which every part is in another kind, too."""
MOST_QUICKLY = [pytest.param(kind, marks=pytest.mark.slow) if kind in _OF_OTHERS else kind for kind in KINDS]
"""Every kind, for tests that take seconds for each."""


@dataclass(frozen=True)
class Small:
    """A model of ten classes with golden weights, and its trace; other tests see the same, so neither may be changed.

    Attributes:
        computed_with: whether the model was found to compute with the size of its batch, for each time it was asked.
    """

    module: nn.Module
    traced: Traced
    computed_with: tuple[bool, ...]


@cache
def small(kind: str) -> Small:
    """The small model of a kind."""
    family, config = KINDS[kind]
    module = support.fill_golden(family.build(config, BuildOptions(num_classes=10)))
    answers: list[bool] = []

    def noticed(graph: ir.Graph) -> bool:
        answers.append(is_computed_with(graph))
        return answers[-1]

    with mock.patch.object(tracing, "is_computed_with", noticed):
        traced = tracing.trace(module, support.spec_for(kind, SIDES.get(kind, (64, 96))))
    return Small(module, traced, tuple(answers))

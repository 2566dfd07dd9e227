# SPDX-License-Identifier: Apache-2.0
"""Seeded weights: the same whatever was in memory before, and different from each other."""

from __future__ import annotations

import pytest
import torch
from small_models import KINDS
from torch import nn

from metaformer_export.models import random_weights
from metaformer_export.models.family import BuildOptions


def _filled(kind: str, seed: int, *, drawn: bool) -> nn.Module:
    family, config = KINDS[kind]
    if drawn:
        module = family.build(config, BuildOptions(num_classes=10))
    else:
        with random_weights.Unfilled():
            module = family.build(config, BuildOptions(num_classes=10))
    random_weights.fill(module, seed)
    return module


@pytest.mark.parametrize("kind", list(KINDS))
def test_weights_are_those_of_the_seed_alone(kind: str) -> None:
    want, got = (_filled(kind, 3, drawn=drawn).state_dict() for drawn in (True, False))
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert torch.equal(tensor, got[name]), name
    other = dict(_filled(kind, 4, drawn=False).named_parameters())
    assert [name for name in other if torch.equal(want[name], other[name])] == []


def test_nothing_is_drawn_inside() -> None:
    before = torch.get_rng_state()
    with random_weights.Unfilled():
        nn.Linear(64, 64)
    assert torch.equal(torch.get_rng_state(), before)
    nn.Linear(64, 64)
    assert not torch.equal(torch.get_rng_state(), before)

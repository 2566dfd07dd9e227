# SPDX-License-Identifier: Apache-2.0
"""The sizes at which the families are said to run the mixer ops are those at which they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import support
import torch
from torch import Tensor

from metaformer_export.artifacts import Traced
from metaformer_export.export.graph import attribute
from metaformer_export.export.ops.catalog import OPS
from metaformer_export.export.ops.mixer_op import DOMAIN
from metaformer_export.export.ops.sizes import all_uses, uses_in, uses_of
from metaformer_export.export.ops.use import Use
from metaformer_export.models import boat_swin, registry
from metaformer_export.models.building import build
from metaformer_export.models.family import BuildOptions, Family, Neck, Variant
from metaformer_export.models.swin import SwinConfig

INPUTS = {
    "GlobalFilter": ("x", "weight"),
    "BalancedClustering": ("q",),
    "ClusterAttention": ("q", "k", "v", "order"),
    "LocalAttention": ("q", "k", "v"),
}
MIXED = [(family, variant) for family, variant in registry.variants() if variant.mixer_ops]
NECKS = [(family, variant, neck) for family, variant in registry.variants() for neck in family.necks if neck.mixer_ops]

Observed = list[tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]]


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Observed:
    """What models put into a graph as mixer ops, instead of computing it: name, sizes of the inputs, attributes."""
    seen: Observed = []

    def symbolic(
        name: str,
        inputs: Sequence[Tensor],
        attrs: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        shape: Sequence[int],
        version: int,
    ) -> Tensor:
        seen.append((name.removeprefix(f"{DOMAIN}::"), tuple(tuple(each.shape) for each in inputs), dict(attrs)))
        return torch.empty(shape, dtype=dtype, device="meta")

    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    monkeypatch.setattr(torch.onnx.ops, "symbolic", symbolic)
    return seen


def run(family: Family, variant: Variant, options: BuildOptions) -> None:
    """The model on no numbers."""
    model = build(family, variant, options, device="meta")
    model(torch.empty(1, 3, variant.image_size, variant.image_size, device="meta"))


def each_once(observed: Observed) -> list[Use]:
    """What was observed, with the batch of 1 as -1; a filter's weight as the pass resizes it."""
    uses = []
    for name, sizes, attributes in observed:
        shapes = dict(zip(INPUTS[name], ((-1, *size[1:]) for size in sizes), strict=True))
        if name == "GlobalFilter":
            _, channels, height, width = shapes["x"]
            shapes["weight"] = (channels, height, width // 2 + 1, 2)
        use = Use(name, shapes, attributes)
        if use not in uses:
            uses.append(use)
    return uses


def alike(uses: Sequence[Use], others: Sequence[Use]) -> bool:
    return len(uses) == len(others) and all(use in others for use in uses)


@pytest.mark.parametrize(("family", "variant"), MIXED, ids=[variant.name for _, variant in MIXED])
def test_a_variant_runs_its_ops_at_these_sizes(family: Family, variant: Variant, observed: Observed) -> None:
    run(family, variant, BuildOptions())
    assert {use.op_type for use in uses_of(family, variant)} == set(variant.mixer_ops)
    assert alike(uses_of(family, variant), each_once(observed))


@pytest.mark.parametrize(("family", "variant", "neck"), NECKS, ids=[variant.name for _, variant, _ in NECKS])
def test_a_neck_adds_its_ops_at_these_sizes(family: Family, variant: Variant, neck: Neck, observed: Observed) -> None:
    run(family, variant, BuildOptions(features=True, neck=neck.name))
    together = [*uses_of(family, variant), *uses_in(neck, variant)]
    assert {use.op_type for use in uses_in(neck, variant)} == set(neck.mixer_ops)
    assert alike(together, each_once(observed))


def test_all_uses_are_those_of_every_variant_and_neck_each_once() -> None:
    found = all_uses()
    assert all(found.count(use) == 1 for use in found)
    wanted = [use for family, variant in MIXED for use in uses_of(family, variant)]
    wanted += [use for _, variant, neck in NECKS for use in uses_in(neck, variant)]
    assert all(use in found for use in wanted)
    assert all(use in wanted for use in found)
    assert {use.op_type for use in found} == {op.op_type for op in OPS}
    assert {use.size for use in found if use.op_type == "GlobalFilter"} >= {"240x14x14", "496x7x7", "480x24x24"}
    heads = {use.shapes["q"][-1] for use in found if use.op_type == "ClusterAttention"}
    assert heads == {24, 32, 48}


def traced_uses(traced: Traced) -> list[Use]:
    """Those of a graph, its batch as -1."""
    uses = []
    for node in traced.model.graph:
        if node.domain == DOMAIN:
            sizes = [value.shape or () for value in node.inputs if value is not None]
            shapes = {
                name: tuple(length if isinstance(length, int) else -1 for length in size)
                for name, size in zip(INPUTS[node.op_type], sizes, strict=True)
            }
            uses.append(Use(node.op_type, shapes, {name: attribute(node, name) for name in node.attributes}))
    return uses


@pytest.mark.slow
def test_a_traced_graph_has_these_sizes(traced_small_gf: Traced, traced_small_boat: Traced) -> None:
    config = SwinConfig(16, (2, 2, 2, 1), (1, 2, 4, 8))
    boat = Variant("boat_test", "boat_test", config, 0, mixer_ops=("BalancedClustering", "ClusterAttention"))
    (family,) = (each for each in support.small_family().variants if each.name == "hornet_test_gf")
    for traced, wanted in (
        (traced_small_gf, uses_of(support.small_family(), family)),
        (traced_small_boat, uses_of(boat_swin.FAMILY, boat)),
    ):
        got = traced_uses(traced)
        assert len(got) == len(wanted) > 0
        for one, other in zip(got, wanted, strict=True):
            assert (one.op_type, one.shapes) == (other.op_type, other.shapes)
            assert dict(one.attributes) == pytest.approx(dict(other.attributes))

# SPDX-License-Identifier: Apache-2.0
"""Forms lowered together are what each is alone, share what they can, and cost in proportion to the graph."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import support

from metaformer_export.artifacts import Lowered, Traced
from metaformer_export.export import trace as tracing
from metaformer_export.export.lower import check, lower, lower_all
from metaformer_export.export.precision import convert
from metaformer_export.export.serialize import apart, serialize, skeleton
from metaformer_export.export.simplify import simplify
from metaformer_export.models import hornet
from metaformer_export.models.family import BuildOptions
from metaformer_export.runtime.observe import rounded

FORMS = ("portable", "openvino", "plugin")


def test_forms_lowered_together_are_as_lowered_alone(traced_small_gf: Traced) -> None:
    before = serialize(traced_small_gf.model).graph
    for together, form in zip(lower_all(traced_small_gf, FORMS), FORMS, strict=True):
        alone = lower(traced_small_gf, form)
        assert (together.form, together.passes) == (form, alone.passes)
        assert serialize(together.model).graph == serialize(alone.model).graph
    assert serialize(traced_small_gf.model).graph == before


def test_forms_lowered_together_share_the_weights_that_they_scale(traced_small_gf: Traced) -> None:
    portable, _, plugin = (
        {name: value.const_value for name, value in each.model.graph.initializers.items()}
        for each in lower_all(traced_small_gf, FORMS)
    )
    name = "stages.2.0.pwconv2.weight"  # takes the layer scale, and is a convolution in the portable form
    ours, theirs = portable[name], plugin[name]
    assert ours is not None
    assert theirs is not None
    assert np.shares_memory(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_is_the_same_every_time(traced_small_gf: Traced, precision: str) -> None:
    first, second = (
        serialize(convert(lower(traced_small_gf, "portable"), precision).model).graph  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert first == second


def _calls(work: Callable[[], object]) -> int:
    """Python calls and steps of generators that some work takes: the same on a busy machine as on a quiet one."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


def _everything(traced: Traced) -> list[Lowered]:
    """All that is done with a graph between tracing and running it."""
    forms = list(lower_all(traced, FORMS))
    for form in forms:
        for precision in ("fp32", "fp16"):
            converted = convert(form, precision)  # type: ignore[arg-type]
            check(skeleton(apart(converted.model)))
            if precision == "fp16":
                apart(rounded(converted))
    return forms


def test_no_step_takes_longer_than_in_proportion_to_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over twice the nodes take over twice the calls; a step that is quadratic would take five times as many."""
    simplifying: list[int] = []

    def counted(model: ir.Model) -> None:
        simplifying.append(_calls(lambda: simplify(model)))

    monkeypatch.setattr(tracing, "simplify", counted)
    nodes, lowering = [], []
    for depth in (2, 8):
        config = replace(support.SMALL_GF, depths=(1, 1, depth, 1))
        module = support.fill_golden(hornet.HorNet(config, BuildOptions(num_classes=10)))
        traced = tracing.trace(module, support.spec_for("deep", (64, 64)))
        nodes.append(traced.model.graph.num_nodes())
        lowering.append(_calls(lambda traced=traced: _everything(traced)))  # type: ignore[misc]
    grown = nodes[1] / nodes[0]
    assert grown > 2
    assert simplifying[1] / simplifying[0] < 1.25 * grown
    assert lowering[1] / lowering[0] < 1.25 * grown

# SPDX-License-Identifier: Apache-2.0
"""What each module's eight bits cost, and the fewest modules to spare them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import support
from small_models import KINDS

from metaformer_export.artifacts import Lowered
from metaformer_export.calibration.quantize import Ranges, observed, quantize
from metaformer_export.calibration.switches import switched
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import serialize
from metaformer_export.export.trace import trace
from metaformer_export.models.family import BuildOptions
from metaformer_export.runtime.onnxruntime import open_session
from metaformer_export.runtime.ranges import extremes
from metaformer_export.runtime.sensitivity import Cost, Trial, fewest_kept, rank


@dataclass(frozen=True)
class Case:
    lowered: Lowered
    ranges: Ranges
    images: np.ndarray
    trial: Trial


@pytest.fixture(
    scope="module", params=[("cpu", "portable"), ("onnxruntime", "int8"), ("openvino", "portable")], ids="-".join
)
def case(request: pytest.FixtureRequest) -> Case:
    target, form = request.param
    family, config = KINDS["hornet"]
    model = support.fill_golden(family.build(config, BuildOptions(num_classes=10)))
    lowered = lower(trace(model, support.spec_for("hornet", (64, 96))), form)
    images = support.image(4, 3, 64, 96)
    seen = extremes(lowered.model, observed(lowered), lambda: [images], threads=2)
    ranges = {name: (each.low, each.high) for name, each in seen.items()}
    found = switched(lowered, quantize(lowered, ranges, target), target)
    session = open_session(serialize(found.model), threads=2, literal=True)
    return Case(lowered, ranges, images, Trial.begin(session, found.modules, images, None, 2))


def run(case: Case, target: str, keep: dict[str, str]) -> np.ndarray:
    graph = quantize(case.lowered, case.ranges, target, keep=keep).model
    (got,) = open_session(serialize(graph), threads=2, literal=True)(case.images)
    return got


def test_all_switches_off_is_the_float_graph(case: Case) -> None:
    (want,) = support.run_model(case.lowered.model, case.images)
    assert support.relative_error(case.trial.want, want) < 1e-5
    assert case.trial.cost(()) == Cost(0.0, 0.0)


def test_some_switches_on_is_the_graph_that_keeps_the_others(case: Case, request: pytest.FixtureRequest) -> None:
    target, _ = request.node.callspec.params["case"]
    for low in (case.trial.modules, case.trial.modules[::3], case.trial.modules[1:2]):
        keep = {module: "for the test" for module in case.trial.modules if module not in low}
        want = run(case, target, keep)
        expected = float(np.sqrt(((want - case.trial.want) ** 2).mean()) / case.trial.want.std())
        assert case.trial.cost(low).rms_rel == pytest.approx(expected, rel=0.1)
        assert expected > 1e-4


def test_modules_are_ranked_by_their_own_cost(case: Case) -> None:
    told: list[int] = []
    found = rank(case.trial, told.append)
    errors = [cost.rms_rel for _, cost in found]
    assert errors == sorted(errors, reverse=True)
    assert {module for module, _ in found} == set(case.trial.modules)
    assert sum(told) == 4 * len(found)
    assert errors[0] > 3 * errors[-1] > 0
    assert case.trial.first(2).cost(case.trial.modules).rms_rel > 0


def test_the_fewest_modules_are_kept(case: Case) -> None:
    ranking = [module for module, _ in rank(case.trial)]
    everything = case.trial.cost(ranking).rms_rel

    def within(cost: Cost) -> bool:
        return cost.rms_rel < 0.6 * everything

    kept = fewest_kept(case.trial, ranking, within)
    assert kept is not None
    assert 1 <= len(kept) < len(ranking) / 2
    assert within(case.trial.cost(set(ranking) - set(kept)))
    assert not within(case.trial.cost(set(ranking) - set(kept[:-1])))
    assert fewest_kept(case.trial, ranking, lambda cost: True) == ()
    assert fewest_kept(case.trial, ranking, lambda cost: cost.rms_rel < 0) is None


def test_labels_count_points_and_their_lack_counts_changes(case: Case) -> None:
    first = case.trial.want.argmax(-1)
    labelled = Trial.begin(case.trial.session, case.trial.modules, case.images, first, 2)
    got = labelled.cost(case.trial.modules)
    assert got.drop == case.trial.cost(case.trial.modules).drop
    wrong = Trial.begin(case.trial.session, case.trial.modules, case.images, (first + 1) % 10, 2)
    assert wrong.cost(case.trial.modules).drop <= 0

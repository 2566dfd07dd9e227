# SPDX-License-Identifier: Apache-2.0
"""Values that modules hand over, and when one of them departs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import support
from torch import nn

from metaformer_export.artifacts import Lowered, Traced
from metaformer_export.calibration.quantize import observed, quantize
from metaformer_export.errors import ParityError
from metaformer_export.export.graph import module_of
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import serialize, taken_apart
from metaformer_export.runtime import departure
from metaformer_export.runtime.clustering import EagerDecisions
from metaformer_export.runtime.departure import Rounding, deviations, error, first_departed, measured
from metaformer_export.runtime.handovers import Handover, handovers, in_chunks, showing
from metaformer_export.runtime.onnxruntime import open_session
from metaformer_export.runtime.session import Session

ROUNDING = Rounding(0.125, 1e-4)


def chain(*names: str) -> tuple[Handover, ...]:
    """Each reads the one before."""
    return tuple(Handover(name, name, names[max(i - 1, 0) : i], 4) for i, name in enumerate(names))


def departures(known: Sequence[float], delivered: Sequence[float]) -> list[float]:
    found = chain(*(f"m{i}" for i in range(len(known))))
    names = [each.name for each in found]
    errors = (dict(zip(names, each, strict=True)) for each in (known, delivered))
    return [each.departure for each in deviations(found, *errors, ROUNDING)]


def test_an_error_that_known_rounding_has_too_is_no_departure() -> None:
    assert departures([0.008, 0.08, 0.8], [0.001, 0.01, 0.1]) == [1, 1, 1]


def test_a_leap_is_a_departure_once_and_not_where_it_is_passed_on() -> None:
    assert departures([0.008, 0.008, 0.016], [0.001, 0.05, 0.1]) == pytest.approx([1, 50, 1])
    found = chain("a", "b", "c")
    known, got = {"a": 0.008, "b": 0.008, "c": 0.016}, {"a": 0.001, "b": 0.05, "c": 0.1}
    first = first_departed(deviations(found, known, got, ROUNDING))
    assert first is not None
    assert (first.module, first.explained, first.increase) == ("b", 0.001, pytest.approx(50))


def test_what_is_more_exact_than_explained_does_not_make_the_next_depart() -> None:
    assert departures([0.008, 0.008], [1e-7, 0.001]) == [pytest.approx(1e-4), 1]
    assert departures([0.0, 0.0], [0.0, 9e-5]) == [0, pytest.approx(0.9)]  # below what counts


def test_what_is_not_finite_departs_where_it_begins() -> None:
    assert departures([0.008, 0.008, 0.008], [0.001, np.inf, np.inf])[1:] == [np.inf, 1]


def test_errors_are_over_the_spread_and_shapes_must_agree() -> None:
    want = np.array([[-1, 1], [-1, 1]], np.float32)
    assert error("x", want, want + 0.5) == 0.5
    assert error("x", 8 * want, 8 * want + 0.5) == 0.0625
    assert error("x", want, np.full_like(want, np.nan)) == np.inf
    masked = np.array([-np.inf, 1, -1], np.float32)
    assert error("mask", masked, masked) == 0
    with pytest.raises(ParityError, match=r"x has shape \(2,\), in the float32 graph \(2, 2\)"):
        error("x", want, want[0])


def test_chunks_keep_the_order_and_the_budget() -> None:
    found = [replace(each, bytes=size) for each, size in zip(chain(*"abcde"), (4, 4, 12, 4, 4), strict=True)]
    chunks = ["".join(each.name for each in chunk) for chunk in in_chunks(found, 2, 16)]
    assert chunks == ["ab", "c", "de"]


def test_modules_hand_over_before_between_and_after_those_they_call(traced_small_7x7: Traced) -> None:
    graph = lower(traced_small_7x7, "portable").model.graph
    found = handovers(graph, {str(node.name) for node in graph})
    makers = {value.name: node for node in graph for value in node.outputs}
    place = {node: index for index, node in enumerate(graph)}
    assert [place[makers[each.name]] for each in found] == sorted(place[makers[each.name]] for each in found)
    assert found[-1].name == "logits"
    assert found[0].reads == ()
    block = [each for each in found if each.module == "stages.2.0"]
    assert [makers[each.name].op_type for each in block] == ["Transpose", "Gelu", "Add"]
    assert set(block[2].reads) == {
        "stages.2.0.pwconv2/Conv",
        "stages.2.0.gnconv.proj_out/Conv",
        "downsample_layers.2.1/Conv",
    }
    assert block[2].bytes == 4 * 64 * 14 * 14
    for each in found:
        assert each.module == (module_of(makers[each.name]) or "model")
        assert all(place[makers[name]] < place[makers[each.name]] for name in each.reads)
    left = handovers(graph, {str(node.name) for node in graph if node.op_type != "Conv"})
    assert not any(makers[each.name].op_type == "Conv" for each in left)
    assert "logits" in {each.name for each in left}


@pytest.fixture(scope="module")
def small(traced_small_7x7: Traced) -> Lowered:
    return lower(traced_small_7x7, "portable")


def kernels(content: bytes, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of a graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_a_quantised_graph_that_shows_its_values_computes_in_eight_bits_as_before(
    small: Lowered, tmp_path: Path
) -> None:
    ranges = dict.fromkeys(observed(small), (-4.0, 4.0))
    quantised = quantize(small, ranges, "cpu").model
    names = [each.name for each in handovers(small.model.graph, {str(node.name) for node in small.model.graph})]
    before = kernels(serialize(quantised).graph, tmp_path)
    after = kernels(serialize(showing(quantised, names)[0]).graph, tmp_path)
    assert before["QLinearConv"] > 30
    for kernel in ("QLinearConv", "QLinearMul", "Conv", "Gemm"):
        assert after[kernel] == before[kernel]


def test_what_no_shown_value_needs_is_left_out(small: Lowered) -> None:
    names = [each.name for each in handovers(small.model.graph, {str(node.name) for node in small.model.graph})]
    model, modules = showing(small.model, names[:3])
    assert modules == ()
    assert [value.name for value in model.graph.outputs] == names[:3]
    assert model.graph.num_nodes() < 10 < small.model.graph.num_nodes()
    assert len(model.graph.initializers) < 10
    assert small.model.graph.outputs[0].name == "logits"


def test_chunks_measure_what_one_run_measures_with_given_clusters(
    small_boat: nn.Module, traced_small_boat: Traced
) -> None:
    lowered = lower(traced_small_boat, "portable")
    images = support.image(1, 3, 224, 224)
    _, orders = EagerDecisions(small_boat)(images)
    found = handovers(lowered.model.graph, {str(node.name) for node in lowered.model.graph})
    opened: list[tuple[str, ...]] = []

    def show(scale: float) -> Callable[[Sequence[str]], tuple[Session, tuple[str, ...]]]:
        model = lowered.model.clone()
        weight = model.graph.initializers["layers.1.blocks.0.mlp.fc1.weight"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(scale), name=weight.name)

        def open_shown(names: Sequence[str]) -> tuple[Session, tuple[str, ...]]:
            shown, modules = showing(model, names)
            opened.append(modules)
            return open_session(taken_apart(shown), threads=2, fuse=False), modules

        return open_shown

    results = [
        measured(show(1), show(1.001), show(1.1), found, images, orders, budget=budget) for budget in (2**40, 2**21)
    ]
    assert len(opened) > 6
    assert opened[0] == tuple(orders)
    assert opened[3] == ()  # the first chunk ends before the first clustering
    for whole, parts in zip(*results, strict=True):
        assert whole.keys() == parts.keys()
        assert [whole[name] for name in whole] == pytest.approx([parts[name] for name in whole], rel=1e-3, abs=1e-7)
    known, got = results[0]
    first = first_departed(deviations(found, known, got, Rounding(1.0, 1e-6)))
    assert first is not None
    assert first.module == "layers.1.blocks.0.mlp.fc1"
    assert first.departure == pytest.approx(100, rel=0.1)


def test_the_precisions_are_ordered() -> None:
    shares = [departure.ROUNDING[each].share for each in ("fp32", "tf32", "bf16")]
    least = [departure.ROUNDING[each].least for each in ("fp32", "fp16", "bf16", "int8")]
    assert shares == sorted(shares)
    assert least == sorted(least)
    assert departure.ROUNDING["tf32"] == departure.ROUNDING["fp16"]

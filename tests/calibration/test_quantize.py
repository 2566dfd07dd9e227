# SPDX-License-Identifier: Apache-2.0
"""Quantised graphs of every family: the rules that each target has for Q/DQ pairs, and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import support
from small_models import small

from metaformer_export.artifacts import Converted, Lowered
from metaformer_export.calibration.placement import HIGH_PRECISION, PLACEMENTS
from metaformer_export.calibration.placement import KINDS as LAYERS
from metaformer_export.calibration.quantize import Ranges, decide, observed, quantize
from metaformer_export.calibration.residuals import layers_behind, residual_additions
from metaformer_export.errors import CalibrationError
from metaformer_export.export.graph import attribute, constant, module_of, producer
from metaformer_export.export.lower import check, lower
from metaformer_export.export.precision import float32_reasons
from metaformer_export.export.serialize import serialize
from metaformer_export.runtime.observe import largest_magnitudes
from metaformer_export.runtime.onnxruntime import open_session
from metaformer_export.runtime.ranges import extremes
from metaformer_export.runtime.saturation import weight_bits

FAMILIES = (
    "poolformer",
    "convformer",
    "caformer",
    "hornet",
    "hornet_gf",
    "focalnet",
    "boat_swin",
    "boat_cswin",
    "acmix_swin",
    "acmix_resnet",
)
Q, DQ = "QuantizeLinear", "DequantizeLinear"
MULTIPLY = ("Conv", "MatMul", "Gemm")
CLUSTERS = ("boat_swin", "boat_cswin")
QUICK = ("caformer", "hornet_gf", "focalnet", "boat_swin", "acmix_swin")
"""Families that every run of the tests quantises from the form for ONNX Runtime, too."""
CASES = [
    pytest.param(
        (kind, form), id=f"{kind}-{form}", marks=() if form == "portable" or kind in QUICK else pytest.mark.slow
    )
    for kind in FAMILIES
    for form in ("portable", "int8")
]


@dataclass(frozen=True)
class Case:
    """A small model of one family with golden weights, its ranges, and both quantised graphs."""

    kind: str
    form: str
    lowered: Lowered
    ranges: Ranges
    images: np.ndarray
    cpu: Converted
    tensorrt: Converted


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    kind, form = request.param
    lowered = lower(small(kind).traced, form)
    images = support.image(2, 3, *lowered.spec.image_size)
    seen = extremes(lowered.model, observed(lowered), lambda: [images], threads=2)
    ranges = {name: (each.low, each.high) for name, each in seen.items()}
    peaks = largest_magnitudes(lowered, images, 2)
    cpu = quantize(lowered, ranges, "cpu", weight_bits=weight_bits())
    return Case(kind, form, lowered, ranges, images, cpu, quantize(lowered, ranges, "tensorrt", max_abs=peaks))


def nodes(converted: Converted, *op_types: str) -> list[ir.Node]:
    return [node for node in converted.model.graph if node.op_type in op_types]


def rms(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(((got - want) ** 2).mean()) / want.std())


def most_of_two_neighbours(rows: np.ndarray) -> int:
    """The largest sum of two weights of one sign that an instruction may multiply at once."""
    if rows.shape[1] % 2:
        return 2 * int(np.abs(rows).max())
    first, second = rows[:, ::2], rows[:, 1::2]
    return int(np.where(first * second > 0, np.abs(first + second), np.maximum(abs(first), abs(second))).max())


def quantised_for(node: ir.Node) -> list[bool]:
    """Of the two matrices that a layer multiplies."""
    return [producer(value, DQ) is not None for value in node.inputs[:2]]


def test_tensorrt_gets_signed_bytes_around_zero_with_float16_scales(case: Case) -> None:
    pairs = nodes(case.tensorrt, Q, DQ)
    assert len(pairs) > 20
    for node in pairs:
        scale, zero = node.inputs[1:]
        assert scale.dtype == ir.DataType.FLOAT16
        assert constant(scale).min() > 6e-6  # a subnormal with fewer than seven bits would be no scale
        assert constant(zero).dtype == np.int8
        assert not constant(zero).any()
    assert {node.outputs[0].dtype for node in nodes(case.tensorrt, DQ)} == {ir.DataType.FLOAT16}
    assert case.tensorrt.model.opset_imports[""] >= 19
    check(ir.to_proto(case.tensorrt.model))


def test_both_matrices_of_a_layer_are_quantised_or_neither(case: Case) -> None:
    for converted in (case.cpu, case.tensorrt):
        kinds = [quantised_for(node) for node in nodes(converted, *MULTIPLY)]
        assert all(first == second for first, second in kinds)
        eight = sum(first for first, _ in kinds)
        assert eight == sum(counts.get("int8", 0) for counts in converted.layers.values())
        assert eight >= 12


def test_weights_have_a_scale_for_every_output_channel(case: Case) -> None:
    axes = {"Conv": 0, "MatMul": 1, "Gemm": 0}  # every Gemm of ours is transposed
    for converted in (case.cpu, case.tensorrt):
        checked = 0
        for node in nodes(converted, *MULTIPLY):
            pair = producer(node.inputs[1], DQ)
            weight = None if pair is None else constant(pair.inputs[0])
            if pair is None or weight is None:
                continue
            axis = axes[node.op_type]
            assert pair.attributes["axis"].value == axis
            assert constant(pair.inputs[1]).shape == (weight.shape[axis],)
            assert 64 < np.abs(weight).max() <= 127 or weight.shape[1] % 2
            if converted is case.cpu and weight_bits() == 7:
                assert most_of_two_neighbours(np.moveaxis(weight.astype(int), axis, 0)) * 255 < 2**15
            checked += 1
        assert checked >= 12


def test_no_bias_is_quantised(case: Case) -> None:
    biases = 0
    for converted in (case.cpu, case.tensorrt):
        for node in nodes(converted, "Conv", "Gemm"):
            if len(node.inputs) == 3 and node.inputs[2] is not None:
                assert constant(node.inputs[2]).dtype in (np.float32, np.float16)
                biases += 1
        for node in nodes(converted, "Add"):  # behind a linear layer
            if any(producer(value, "MatMul") is not None for value in node.inputs):
                assert not any(producer(value, DQ) is not None and constant(value) is not None for value in node.inputs)
                biases += any(constant(value) is not None for value in node.inputs)
        assert ir.DataType.INT32 not in {value.dtype for value in converted.model.graph.initializers.values()}
    assert biases > 10


def test_tensorrt_gets_one_branch_of_every_residual_addition_that_can_join_a_layer(case: Case) -> None:
    graph = case.tensorrt.model.graph
    plain = {node.name: branch for node, _, branch in residual_additions(case.lowered.model.graph)}
    eight = {node.name for node in nodes(case.tensorrt, *MULTIPLY) if all(quantised_for(node))}
    joined = {name for name, branch in plain.items() if {layer.name for layer in layers_behind(branch)} & eight}
    if case.kind == "poolformer":  # of each of five blocks that of the MLP: the mixer has no layer
        assert (len(plain), len(joined)) == ({"portable": 15, "int8": 10}[case.form], 5)
    else:
        assert len(joined) == len(plain) >= 4
    for node in graph:
        if node.name in plain:
            assert sum(producer(value, DQ) is not None for value in node.inputs) == (node.name in joined)
    others = [node for node in nodes(case.tensorrt, "Add") if node.name not in plain]
    assert not any(producer(value, DQ) for node in others for value in node.inputs)


def test_nothing_on_the_list_reads_eight_bits_in_tensorrt(case: Case) -> None:
    high = nodes(case.tensorrt, *HIGH_PRECISION)
    assert len(high) > 5
    assert not any(producer(value, DQ) for node in high for value in node.inputs)


def test_decisions_filters_and_their_inputs_stay_as_they_are(case: Case) -> None:
    reasons = float32_reasons(case.lowered.model.graph)
    required = {node.name for node in reasons}
    assert bool(required) == (case.kind in (*CLUSTERS, "hornet_gf"))
    makers = [node for node, reason in reasons.items() if "makes the input" in reason and node.op_type in MULTIPLY]
    assert len(makers) == (3 if case.kind in CLUSTERS else 0)
    for converted in (case.cpu, case.tensorrt):
        kept = [node for node in converted.model.graph if node.name in required and node.op_type in MULTIPLY]
        assert not any(any(quantised_for(node)) for node in kept)


def test_the_cpu_gets_unsigned_activations_and_results_of_convolutions(case: Case) -> None:
    activations = nodes(case.cpu, Q)
    assert {node.outputs[0].dtype for node in activations} == {ir.DataType.UINT8}
    for node in nodes(case.cpu, "Conv"):
        readers = {use.node.op_type for use in node.outputs[0].uses()}
        assert readers == {Q} or not quantised_for(node)[0]
    products = {each.node.name for each in decide(case.lowered, PLACEMENTS["cpu"]) if each.kind == "product"}
    assert not any(any(quantised_for(node)) for node in nodes(case.cpu, "MatMul") if node.name in products)
    check(ir.to_proto(case.cpu.model))


def test_what_is_kept_is_said_with_the_reason(case: Case) -> None:
    for target, converted in (("cpu", case.cpu), ("tensorrt", case.tensorrt)):
        decisions = decide(case.lowered, PLACEMENTS[target])
        assert {each.kind for each in decisions} <= set(LAYERS)
        said = sum(len(each.ops) for each in converted.kept if each.module in {d.module or "model" for d in decisions})
        assert said >= sum(not each.quantised for each in decisions)
        assert all(each.reason for each in converted.kept)


def test_numbers_are_near_those_of_the_float_graph(case: Case) -> None:
    (want,) = support.run_model(case.lowered.model, case.images)
    limit = 0.5 if case.kind in CLUSTERS else 0.2  # whose decisions change with the streams that they are made from
    (fused,) = support.run_model(case.cpu.model, case.images)
    (literal,) = open_session(serialize(case.cpu.model), threads=2, literal=True)(case.images)
    (signed,) = open_session(serialize(case.tensorrt.model), threads=2, literal=True)(case.images)
    assert 1e-4 < rms(literal, want) < limit
    assert 1e-4 < rms(signed, want) < limit
    if case.kind not in CLUSTERS:
        assert rms(fused, want) < 1.3 * rms(literal, want)  # the processor's sums do not overflow


def test_gelus_are_approximated_only_where_eight_bits_are_much_coarser(case: Case) -> None:
    exact = [
        node.name for node in nodes(case.cpu, "Gelu") if {use.node.op_type for use in node.outputs[0].uses()} == {Q}
    ]
    assert len(exact) >= 3 or case.kind in ("convformer", "caformer", "acmix_resnet", "poolformer")
    fine = {name: (low / 100, high / 100) for name, (low, high) in case.ranges.items()}
    for ranges, wanted in ((case.ranges, exact), (fine, [])):
        graph = quantize(case.lowered, ranges, "onnxruntime", weight_bits=weight_bits()).model.graph
        gelus = [node for node in graph if node.op_type == "Gelu"]
        steps = {
            node.name: [float(constant(use.node.inputs[1])) for use in node.outputs[0].uses()]
            for node in gelus
            if node.name in exact
        }
        found = [node.name for node in gelus if attribute(node, "approximate", "none") == "tanh"]
        assert found == [name for name in wanted if min(steps[name]) > 8 * 4.8e-4]
        assert len(found) == len(wanted)


def test_a_module_that_is_kept_is_left_alone(case: Case) -> None:
    decisions = decide(case.lowered, PLACEMENTS["cpu"])
    module = next(each.module for each in decisions if each.quantised and each.kind in ("linear", "matmul"))
    converted = quantize(case.lowered, case.ranges, "cpu", keep={module: "wanted by the test"})
    own = [node for node in nodes(converted, *MULTIPLY) if module_of(node) == module]
    assert own
    assert not any(any(quantised_for(node)) for node in own)
    assert [each.ops for each in converted.kept if each.reason == "wanted by the test"] == [
        tuple(node.op_type for node in own)
    ]


def test_a_missing_range_is_an_error_with_a_way_out(case: Case) -> None:
    ranges = dict(case.ranges)
    name = next(iter(ranges))
    del ranges[name]
    with pytest.raises(CalibrationError, match=f"no range for {name}.*--calib-data"):
        quantize(case.lowered, ranges, "tensorrt")

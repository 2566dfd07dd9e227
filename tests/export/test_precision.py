# SPDX-License-Identifier: Apache-2.0
"""Low precision: what is cast, what stays, and that nothing is hidden."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import support
import torch
from torch import nn

from metaformer_export.artifacts import Lowered, Traced
from metaformer_export.export.graph import MIXER_OP, MOVES_DATA
from metaformer_export.export.lower import check, lower
from metaformer_export.export.precision import FLOAT16_MAX, convert, out_of_range
from metaformer_export.export.trace import trace
from metaformer_export.models import hornet
from metaformer_export.models.family import BuildOptions
from metaformer_export.runtime import eager
from metaformer_export.runtime.observe import largest_magnitudes, rounded

X = support.image(2, 3, 224, 224)
FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def casts(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Cast"]


def test_everything_is_float16_but_the_inputs_and_outputs(traced_small_7x7: Traced, small_7x7: nn.Module) -> None:
    converted = convert(lower(traced_small_7x7, "portable"), "fp16")
    graph = converted.model.graph
    check(ir.to_proto(converted.model))
    assert {value.dtype for value in graph.initializers.values()} <= {FLOAT16, ir.DataType.INT64}
    assert [value.dtype for value in (*graph.inputs, *graph.outputs)] == [FLOAT, FLOAT]
    assert len(casts(converted.model)) == 2
    assert converted.kept == ()
    (want,) = eager.run(small_7x7, X)
    (got,) = support.run_model(rounded(converted), X)
    assert 1e-5 < support.relative_error(got, want) <= 2e-2


def test_the_scales_of_a_resize_stay_float32_in_a_float16_graph() -> None:
    """ONNX has them in float32 for data of any type."""

    class Upsampled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.interpolate(x * 3, scale_factor=2, mode="nearest")

    converted = convert(lower(trace(Upsampled().eval(), support.spec_for("up", (4, 6))), "portable"), "fp16")
    check(ir.to_proto(converted.model))
    (resize,) = [node for node in converted.model.graph if node.op_type == "Resize"]
    assert [resize.inputs[0].dtype, resize.inputs[2].dtype, resize.outputs[0].dtype] == [FLOAT16, FLOAT, FLOAT16]
    x = support.image(2, 3, 4, 6)
    want = 3 * x.repeat(2, axis=2).repeat(2, axis=3)
    assert support.relative_error(support.run_model(converted.model, x)[0], want) <= 5e-3


def test_io_fp16_needs_no_casts_at_all(traced_small_7x7: Traced) -> None:
    converted = convert(lower(traced_small_7x7, "portable"), "fp16", io="fp16")
    check(ir.to_proto(converted.model))
    assert casts(converted.model) == []
    assert [value.dtype for value in (*converted.model.graph.inputs, *converted.model.graph.outputs)] == [FLOAT16] * 2


def test_filters_stay_float32_with_one_cast_in_and_one_out(traced_small_gf: Traced) -> None:
    converted = convert(lower(traced_small_gf, "portable"), "fp16")
    check(ir.to_proto(converted.model))
    graph = converted.model.graph
    filters = [n for n in graph if n.metadata_props.get(MIXER_OP) == "GlobalFilter"]
    assert filters
    assert {output.dtype for node in filters for output in node.outputs} == {FLOAT}
    assert len(casts(converted.model)) == 2 + 2 * 2  # the graph's own, and two filters
    assert {kept.module for kept in converted.kept} == {"stages.2.0.gnconv.dwconv", "stages.3.0.gnconv.dwconv"}
    assert all(kept.reason.startswith("GlobalFilter: ") for kept in converted.kept)
    counted = sum((Counter(kinds) for kinds in converted.layers.values()), Counter())
    arithmetic = [node for node in filters if node.op_type not in MOVES_DATA | {"Cast"}]
    assert counted["fp32"] == len(arithmetic)


def test_a_filter_as_a_plugin_reads_and_writes_16_bits_and_has_a_float32_weight(traced_small_gf: Traced) -> None:
    converted = convert(lower(traced_small_gf, "plugin"), "fp16")
    check(ir.to_proto(converted.model))
    filters = [node for node in converted.model.graph if node.op_type == "GlobalFilter"]
    assert len(filters) == 2
    for node in filters:
        assert [value.dtype for value in (*node.inputs, *node.outputs)] == [FLOAT16, FLOAT, FLOAT16]
    assert len(casts(converted.model)) == 2  # the graph's own
    assert converted.kept == ()


def test_bfloat16_rounds_and_stays_close(small_gf: nn.Module) -> None:
    traced = trace(small_gf, support.spec_for("hornet_test_gf"), opset=22)
    converted = convert(lower(traced, "portable"), "bf16")
    check(ir.to_proto(converted.model))
    (want,) = eager.run(small_gf, X)
    (got,) = support.run_model(rounded(converted), X)
    assert 1e-3 < support.relative_error(got, want) <= 0.1


def test_largest_magnitudes_are_those_of_the_graph(traced_small_7x7: Traced, small_7x7: nn.Module) -> None:
    lowered = lower(traced_small_7x7, "portable")
    peaks = largest_magnitudes(lowered, X, threads=2)
    with torch.inference_mode():
        stem = small_7x7.downsample_layers[0][0](torch.from_numpy(X))
        norm = small_7x7.downsample_layers[0](torch.from_numpy(X))
        logits = small_7x7(torch.from_numpy(X))
    assert peaks["downsample_layers.0.0/Conv"] == pytest.approx(float(stem.abs().max()), rel=1e-5)
    assert peaks["downsample_layers.0.1/LayerNormalization"] == pytest.approx(float(norm.abs().max()), rel=1e-5)
    assert peaks["logits"] == pytest.approx(float(logits.abs().max()), rel=1e-5)


@pytest.fixture(scope="module")
def loud() -> tuple[nn.Module, Lowered]:
    """A model whose third stage multiplies gates to values that float16 cannot hold."""
    module = support.fill_golden(hornet.HorNet(support.SMALL, BuildOptions()))
    module.stages[2][0].gnconv.pws[2].weight *= 3e5
    return module, lower(trace(module, support.spec_for("loud")), "portable")


def test_a_value_outside_float16_is_named_and_kept(loud: tuple[nn.Module, Lowered]) -> None:
    module, lowered = loud
    peaks = largest_magnitudes(lowered, X, threads=2)
    wide = out_of_range(lowered, peaks)
    assert wide
    assert wide[0].module == "stages.2.0.gnconv.pws.2"
    assert wide[0].max_abs > FLOAT16_MAX
    (want,) = eager.run(module, X)
    unguarded = support.run_model(rounded(convert(lowered, "fp16")), X)[0]
    assert not np.isfinite(unguarded).all()
    guarded = convert(lowered, "fp16", max_abs=peaks)
    assert support.relative_error(support.run_model(rounded(guarded), X)[0], want) <= 2e-2
    reasons = {kept.module: kept.reason for kept in guarded.kept}
    assert "reaches" in reasons["stages.2.0.gnconv.pws.2"]
    assert len(reasons) < 12


def test_onnx_runtime_alone_would_hide_the_overflow(loud: tuple[nn.Module, Lowered]) -> None:
    """Why parity also runs the rounded graph: the CPU keeps float32 between the layers of a float16 graph."""
    _, lowered = loud
    assert np.isfinite(support.run_model(convert(lowered, "fp16").model, X)[0]).all()


def test_float32_changes_nothing(traced_small_7x7: Traced) -> None:
    lowered = lower(traced_small_7x7, "portable")
    converted = convert(lowered, "fp32")
    assert ir.to_proto(converted.model) == ir.to_proto(lowered.model)
    assert set().union(*converted.layers.values()) == {"fp32"}


def chain(*ops: tuple[str, dict[str, object]]) -> Lowered:
    """input -> each operator in turn, all on one 4-D value."""
    x = ir.val("input", FLOAT, [1, 2, 4, 4])
    nodes: list[ir.Node] = []
    for name, attributes in ops:
        node = ir.node(name, nodes[-1].outputs if nodes else [x], attributes, name=f"{name}{len(nodes)}")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"v{len(nodes)}", x.type, x.shape
        nodes.append(node)
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, opset_imports={"": 20}, name="chain")
    return Lowered(support.spec_for("chain"), ir.Model(graph, ir_version=10), "portable")


def test_a_chain_of_data_movement_between_islands_is_not_cast_down_and_up() -> None:
    swap = ("Transpose", {"perm": (0, 1, 3, 2)})
    lowered = chain(("Relu", {}), ("Neg", {}), swap, swap, ("Neg", {}), ("Relu", {}))
    loud = {"v1": 1e5, "v4": 1e5}
    converted = convert(lowered, "fp16", max_abs=loud)
    kinds = [node.op_type for node in converted.model.graph]
    inner = kinds[kinds.index("Neg") : len(kinds) - kinds[::-1].index("Neg")]
    assert inner == ["Neg", "Transpose", "Transpose", "Neg"]


def test_an_input_outside_float16_is_reported_too() -> None:
    lowered = chain(("Neg", {}))
    x = np.full((1, 2, 4, 4), 1e5, np.float32)
    found = out_of_range(lowered, largest_magnitudes(lowered, x, threads=2))
    assert [(each.op, each.value, each.max_abs) for each in found] == [("input", "input", 1e5), ("Neg", "v0", 1e5)]


def test_a_weight_outside_float16_is_reported_and_kept_but_fits_bfloat16(traced_small_7x7: Traced) -> None:
    lowered = lower(traced_small_7x7, "portable")
    weight = lowered.model.graph.initializers["head.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1e6), name="head.weight")
    assert ("head", "head.weight") in {(each.module, each.value) for each in out_of_range(lowered, {})}
    assert {"head"} == {kept.module for kept in convert(lowered, "fp16").kept}
    assert convert(lowered, "bf16").kept == ()


def test_rounding_reaches_a_float16_input(traced_small_7x7: Traced) -> None:
    converted = convert(lower(traced_small_7x7, "portable"), "fp16", io="fp16")
    just_above = np.full((1, 3, 224, 224), 1 + 2.0**-13, np.float32)  # rounds to 1 in float16
    session = rounded(converted)
    assert np.array_equal(
        support.run_model(session, just_above)[0], support.run_model(session, np.ones_like(just_above))[0]
    )

# SPDX-License-Identifier: Apache-2.0
"""metaformer::GlobalFilter as DFT nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from metaformer_export.artifacts import Lowered, Traced
from metaformer_export.errors import LoweringError
from metaformer_export.export.ops.global_filter.native import whole_spectrum
from metaformer_export.export.ops.global_filter.op import reference
from metaformer_export.export.passes.base import run_pass
from metaformer_export.export.passes.catalog import PORTABLE
from metaformer_export.export.passes.global_filter_to_dft import GlobalFilterToDft
from metaformer_export.export.passes.global_filter_to_matmul import GlobalFilterToMatmul
from metaformer_export.export.passes.resize_spectral_filters import ResizeSpectralFilters
from metaformer_export.export.precision import convert
from metaformer_export.runtime.tensorrt.support import check_support

OPSETS = (18, 20, 23)
SIZES = st.integers(1, 17)
CHANNELS = 3


def case(height: int, width: int, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A map and a filter that is not Hermitian anywhere."""
    random = np.random.RandomState(height * 100 + width)
    x = random.standard_normal((batch, CHANNELS, height, width)).astype(np.float32)
    return x, random.standard_normal((CHANNELS, height, width // 2 + 1, 2)).astype(np.float32)


def filter_model(x: np.ndarray, weight: np.ndarray, opset: int = 20) -> ir.Model:
    """A graph of one GlobalFilter with a dynamic batch, in the type of x."""
    shape = ["batch", *x.shape[1:]]
    source = ir.val("input", ir.DataType.from_numpy(x.dtype), shape)
    w = ir.val("weight", const_value=ir.tensor(weight, name="weight"))
    attributes = {"height": x.shape[2], "width": x.shape[3]}
    node = ir.node("GlobalFilter", [source, w], attributes, domain="metaformer", name="filter")
    y = node.outputs[0]
    y.name, y.type, y.shape = "output", source.type, source.shape
    imports = {"": opset, "metaformer": 1}
    graph = ir.Graph([source], [y], nodes=[node], initializers=[w], opset_imports=imports, name="filter")
    return ir.Model(graph, ir_version=10)


def as_dft(x: np.ndarray, weight: np.ndarray, opset: int = 20) -> ir.Model:
    model = filter_model(x, weight, opset)
    assert run_pass(GlobalFilterToDft(), model).rewrites == 1
    return model


def transforms(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "DFT"]


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / max(np.sqrt(np.mean(want**2)), 1e-3))


@pytest.mark.parametrize("opset", OPSETS)
@given(height=SIZES, width=SIZES, batch=st.integers(1, 3))
@settings(max_examples=25)
def test_dft_matches_the_reference_at_any_size(opset: int, height: int, width: int, batch: int) -> None:
    x, weight = case(height, width, batch)
    (got,) = support.run_model(as_dft(x, weight, opset), x)
    assert got.shape == x.shape
    assert error(got, reference(x, weight)) <= 1e-5


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (5, 1), (7, 7), (14, 14)])
def test_nodes_are_what_onnx_defines(opset: int, height: int, width: int) -> None:
    x, weight = case(height, width)
    proto = ir.to_proto(as_dft(x, weight, opset))
    onnx.checker.check_model(proto, full_check=True)
    (got,) = ReferenceEvaluator(proto).run(None, {"input": x})
    assert got.dtype == np.float32
    assert error(got, reference(x, weight)) <= 2e-6


@pytest.mark.parametrize("opset", OPSETS)
def test_nodes_are_what_tensorrt_takes_from_11_2_on(opset: int) -> None:
    model = as_dft(*case(14, 14), opset)
    assert len(transforms(model.graph)) == 4
    assert check_support(model, (11, 2), frozenset()) == ()
    refused = check_support(model, (11, 1), frozenset())
    assert [each.op_type for each in refused] == ["DFT"] * 4
    for node in transforms(model.graph):
        axis_is_input = len(node.inputs) == 3
        assert axis_is_input == (opset >= 20)
        assert ("axis" in node.attributes) != axis_is_input


@given(height=SIZES, width=SIZES)
def test_whole_spectrum_filters_as_the_half_does(height: int, width: int) -> None:
    x, weight = (each.astype(np.float64) for each in case(height, width, batch=1))
    whole = whole_spectrum(weight, width)
    assert whole.shape == (CHANNELS, height, width, 2)
    back = np.fft.ifft2(np.fft.fft2(x) * (whole[..., 0] + 1j * whole[..., 1])).real
    assert error(back, reference(x, weight)) <= 1e-12


def test_a_map_in_float16_is_transformed_in_float32() -> None:
    x, weight = case(7, 9)
    x = (1000 * x).astype(np.float16)  # sums over a map of these leave float16's range
    model = as_dft(x, weight)
    assert {node.inputs[0].dtype for node in transforms(model.graph)} == {ir.DataType.FLOAT}
    assert [node.op_type for node in model.graph].count("Cast") == 2
    got = support.run_feeds(model, x)
    assert got.dtype == np.float16
    assert error(got.astype(np.float64), reference(x, weight)) <= 2e-3


def test_transforms_stay_float32_in_a_low_precision_graph() -> None:
    x, weight = case(7, 9)
    lowered = Lowered(support.spec_for("filter"), as_dft(x, weight), "plugin")
    converted = convert(lowered, "fp16", io="fp16")
    nodes = transforms(converted.model.graph)
    assert [node.outputs[0].dtype for node in nodes] == [ir.DataType.FLOAT] * 4
    assert {each.reason.split(":")[0] for each in converted.kept} >= {"GlobalFilter"}
    got = support.run_feeds(converted.model, x.astype(np.float16))
    assert got.dtype == np.float16
    assert error(got.astype(np.float64), reference(x, weight)) <= 2e-3


def test_a_filter_of_another_size_must_be_resized_before() -> None:
    x, _ = case(9, 10)
    _, weight = case(14, 14)
    model = filter_model(x, weight)
    with pytest.raises(LoweringError, match="GlobalFilterToDft cannot run: filter needs a constant weight"):
        run_pass(GlobalFilterToDft(), model)
    assert run_pass(ResizeSpectralFilters(), model).rewrites == 1
    assert run_pass(GlobalFilterToDft(), model).rewrites == 1
    assert error(support.run_model(model, x)[0], reference(x, weight)) <= 1e-5


def test_a_computed_weight_is_refused_and_the_graph_left_as_it_was() -> None:
    x, weight = case(4, 6)
    model = filter_model(x, weight)
    computed = ir.val("computed", ir.DataType.FLOAT, weight.shape)
    model.graph.inputs.append(computed)
    model.graph.node(0).replace_input_with(1, computed)
    with pytest.raises(LoweringError, match="needs a constant weight of its map's size"):
        run_pass(GlobalFilterToDft(), model)
    assert [node.op_type for node in model.graph] == ["GlobalFilter"]


def test_a_network_lowered_to_dft_gives_what_matrix_products_give(traced_small_gf: Traced) -> None:
    outputs = {}
    image = support.image(1, 3, 224, 224)
    for each in (GlobalFilterToMatmul(), GlobalFilterToDft()):
        model = traced_small_gf.model.clone()
        for step in PORTABLE:
            run_pass(each if isinstance(step, GlobalFilterToMatmul) else step, model)
        outputs[type(each)] = support.run_model(model, image)[0]
    assert len(transforms(model.graph)) == 8
    axes = {str(node.inputs[2].name) for node in transforms(model.graph) if node.inputs[2] is not None}
    assert len(axes) == 1
    got, want = outputs[GlobalFilterToDft], outputs[GlobalFilterToMatmul]
    assert support.relative_error(got, want) <= 1e-5

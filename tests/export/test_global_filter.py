# SPDX-License-Identifier: Apache-2.0
"""metaformer::GlobalFilter: every form computes what the float64 reference computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import support
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from metaformer_export.errors import LoweringError
from metaformer_export.export.ops.global_filter.op import reference, resize_filter
from metaformer_export.export.passes.attach_plugin import AttachPlugin
from metaformer_export.export.passes.base import Pass, run_pass
from metaformer_export.export.passes.global_filter_to_matmul import GlobalFilterToMatmul
from metaformer_export.export.passes.resize_spectral_filters import ResizeSpectralFilters
from metaformer_export.models.mixers.global_filter import global_filter

SIZES = st.integers(1, 20)
DENSE = GlobalFilterToMatmul(separable_above=10**9)
SEPARABLE = GlobalFilterToMatmul(separable_above=0)


def filter_model(channels: int, height: int, width: int, weight: np.ndarray, opset: int = 20) -> ir.Model:
    """A graph of one GlobalFilter with a dynamic batch."""
    x = ir.val("input", ir.DataType.FLOAT, ["batch", channels, height, width])
    w = ir.val("weight", const_value=ir.tensor(weight.astype(np.float32), name="weight"))
    node = ir.node("GlobalFilter", [x, w], {"height": height, "width": width}, domain="metaformer", name="filter")
    y = node.outputs[0]
    y.name, y.type, y.shape = "output", ir.TensorType(ir.DataType.FLOAT), x.shape
    imports = {"": opset, "metaformer": 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports=imports, name="filter")
    return ir.Model(graph, ir_version=10)


def case(height: int, width: int, batch: int = 2, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(height * 100 + width)
    x = random.standard_normal((batch, channels, height, width)).astype(np.float32)
    return x, random.standard_normal((channels, height, width // 2 + 1, 2)).astype(np.float32)


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / max(np.sqrt(np.mean(want**2)), 1e-3))


@pytest.mark.parametrize("each", [DENSE, SEPARABLE, AttachPlugin()], ids=["dense", "separable", "function"])
@given(height=SIZES, width=SIZES, batch=st.integers(1, 4), channels=st.integers(1, 4))
def test_every_form_matches_the_reference(each: Pass, height: int, width: int, batch: int, channels: int) -> None:
    x, weight = case(height, width, batch, channels)
    model = filter_model(channels, height, width, weight)
    assert run_pass(each, model).rewrites == 1
    (got,) = support.run_model(model, x)
    assert got.shape == x.shape
    assert error(got, reference(x, weight)) <= 1e-5


@given(height=SIZES, width=SIZES)
def test_eager_matches_the_reference(height: int, width: int) -> None:
    x, weight = case(height, width)
    got = global_filter(torch.from_numpy(x).double(), torch.from_numpy(weight).double()).numpy()
    assert error(got, reference(x, weight)) <= 1e-12


@pytest.mark.parametrize(("height", "width"), [(14, 14), (24, 24), (33, 32), (48, 40)])
def test_large_maps_go_separably_and_agree(height: int, width: int) -> None:
    x, weight = case(height, width)
    model = filter_model(3, height, width, weight)
    run_pass(GlobalFilterToMatmul(), model)
    products = sum(node.op_type == "MatMul" for node in model.graph)
    assert products == (5 if height * width > 1024 else 3)
    assert error(support.run_model(model, x)[0], reference(x, weight)) <= 1e-5


@given(h=st.integers(1, 16), w=st.integers(1, 16), height=st.integers(1, 24), width=st.integers(1, 24))
def test_resizing_a_filter_is_torchs_bilinear_with_aligned_corners(h: int, w: int, height: int, width: int) -> None:
    weight = np.random.RandomState(h * 16 + w).standard_normal((2, h, w, 2))
    planes = torch.from_numpy(weight).permute(3, 0, 1, 2)
    want = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=True).permute(1, 2, 3, 0)
    assert np.abs(resize_filter(weight, height, width) - want.numpy()).max() <= 1e-12


@pytest.mark.parametrize(("height", "width"), [(10, 13), (20, 16), (7, 7)])
def test_a_filter_of_another_size_is_resized_once_at_build_time(height: int, width: int) -> None:
    x, _ = case(height, width)
    weight = np.random.RandomState(0).standard_normal((3, 14, 8, 2)).astype(np.float32)
    model = filter_model(3, height, width, weight)
    with pytest.raises(LoweringError, match="constant weight of its map's size"):
        run_pass(DENSE, model)
    assert run_pass(ResizeSpectralFilters(), model).rewrites == 1
    assert run_pass(ResizeSpectralFilters(), model).rewrites == 0
    run_pass(DENSE, model)
    assert not any(node.op_type in ("Resize", "Unsqueeze") for node in model.graph)
    assert error(support.run_model(model, x)[0], reference(x, weight)) <= 1e-5


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22, 23])
def test_the_function_body_runs_at_every_opset_and_names_its_plugin(opset: int) -> None:
    x, weight = case(9, 12)
    model = filter_model(3, 9, 12, weight, opset)
    run_pass(AttachPlugin(), model)
    node = model.graph.node(0)
    assert set(node.attributes) == {"plugin_namespace", "plugin_version", "height", "width"}
    assert node.attributes["plugin_namespace"].value == "metaformer"
    assert node.attributes["plugin_version"].value == "1"
    assert error(support.run_model(model, x)[0], reference(x, weight)) <= 1e-5

# SPDX-License-Identifier: Apache-2.0
"""A detection neck in the graph: what the passes make of it, and that it still computes the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import support
import torch
from torch import nn

from metaformer_export.artifacts import Traced
from metaformer_export.export.graph import constant, module_of
from metaformer_export.export.lower import check, lower
from metaformer_export.export.precision import convert
from metaformer_export.export.trace import trace
from metaformer_export.models import hornet
from metaformer_export.models.dense import DenseModel
from metaformer_export.models.family import BuildOptions
from metaformer_export.runtime.observe import rounded
from metaformer_export.runtime.parity import THRESHOLDS, judge, measure

NECKS = {neck.name: neck for neck in hornet.FAMILY.necks}
SIZE = (64, 96)


def _detector(name: str) -> nn.Module:
    backbone = hornet.HorNet(support.SMALL, BuildOptions(features=True))
    return support.fill_golden(DenseModel(backbone, NECKS[name].build(support.SMALL.dims)))


def _traced(name: str, model: nn.Module, size: tuple[int, int]) -> Traced:
    return trace(model, support.spec_for("hornet_test", size, NECKS[name].outputs))


@pytest.fixture(scope="module", params=list(NECKS))
def detector(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Traced]:
    """Name of the neck, the eager model, the model traced at 64x96."""
    model = _detector(request.param)
    return request.param, model, _traced(request.param, model, SIZE)


def _kinds(model: ir.Model) -> Counter[str]:
    """Operators of the neck."""
    return Counter(node.op_type for node in model.graph if module_of(node).startswith("neck"))


def _images() -> np.ndarray:
    return support.image(3, 3, *SIZE)


def _expected(model: nn.Module) -> list[np.ndarray]:
    with torch.inference_mode():
        return [level.numpy() for level in model(torch.from_numpy(_images()))]


@pytest.mark.parametrize("form", ["portable", "plugin"])
def test_both_forms_compute_what_eager_computes_at_any_batch(detector, form: str) -> None:
    _, model, traced = detector
    lowered = lower(traced, form)
    check(ir.to_proto(lowered.model))
    together = support.run_model(lowered.model, _images())
    alone = [support.run_model(lowered.model, image[None]) for image in _images()]
    expected = _expected(model)
    assert len(together) == len(expected) == 5
    for i, want in enumerate(expected):
        assert support.relative_error(together[i], want) <= 1e-4
        assert support.relative_error(np.concatenate([each[i] for each in alone]), want) <= 1e-4


def test_float16_holds_with_every_tensor_rounded(detector) -> None:
    name, model, traced = detector
    converted = convert(lower(traced, "portable"), "fp16")
    check(ir.to_proto(converted.model))  # ONNX has the upsampling's scales in float32 only
    filters = 4 if name == "horfpn_gf" else 0
    assert [kept.module for kept in converted.kept] == [f"neck.fpn_convs.{i}.dwconv" for i in range(filters)]
    levels = support.run_model(rounded(converted), _images())
    for i, want in enumerate(_expected(model)):
        result = measure(f"p{i + 2}", want, levels[i], classifier=False)
        assert result.rms_rel > 1e-5  # something was rounded
        assert judge(result, THRESHOLDS["fp16"]) == []


def test_every_level_is_lowered(detector) -> None:
    """No factor 1, no split after a convolution, no Shape for the upsampling; norms and filters are expanded."""
    name, _, traced = detector
    before, after = _kinds(traced.model), _kinds(lower(traced, "portable").model)
    assert (before["Resize"], before["Split"]) == (3, 8 if name == "horfpn_7x7" else 12)
    assert (after["Resize"], after["MaxPool"], after["Shape"]) == (3, 1, 0)
    if name == "horfpn_7x7":
        assert after == {"Conv": 32, "Mul": 8, "Add": 3, "Resize": 3, "MaxPool": 1}
        return
    assert (before["GlobalFilter"], before["ReduceMean"]) == (4, 16)
    assert (after["GlobalFilter"], after["ReduceMean"], after["LayerNormalization"]) == (0, 0, 8)
    assert after["Split"] == 8  # the halves of the filter and the gates: their sources are norms, not convolutions
    plugin = lower(traced, "plugin").model
    assert _kinds(plugin)["GlobalFilter"] == 4
    sizes = [
        (node.attributes["height"].value, node.attributes["width"].value, tuple(node.inputs[1].shape))
        for node in plugin.graph
        if node.op_type == "GlobalFilter"
    ]
    assert sorted(sizes) == [(h, w, (192, h, w // 2 + 1, 2)) for h, w in ((2, 3), (4, 6), (8, 12), (16, 24))]


def test_upsampling_has_constant_scales(detector) -> None:
    """Where a runtime must read the size off a shape, it cannot plan; ONNX Runtime then leaves its blocked layout."""
    _, _, traced = detector
    resizes = [node for node in lower(traced, "portable").model.graph if node.op_type == "Resize"]
    assert len(resizes) == 3
    for node in resizes:
        scales = constant(node.inputs[2])
        assert scales is not None
        assert scales.tolist() == [1, 1, 2, 2]
        assert len(node.inputs) == 3 or node.inputs[3] is None


def test_large_levels_are_filtered_row_by_row() -> None:
    """At 256x320 the two finest levels have more tokens than one product over the whole map is good for."""
    model = _detector("horfpn_gf")
    lowered = lower(_traced("horfpn_gf", model, (256, 320)), "portable")
    made = {name for name in lowered.model.graph.initializers if name.startswith("dft")}
    separable = {f"dft{size}.{part}" for size in ("64x80", "32x40") for part in ("rows", "rows.inverse")}
    dense = {f"dft{size}.{part}" for size in ("16x20", "8x10") for part in ("real", "imag", "inverse")}
    assert separable | dense <= made
    assert not any(name.startswith(("dft64x80.real", "dft32x40.real")) for name in made)
    x = support.image(1, 3, 256, 320)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x))
    for got, want in zip(support.run_model(lowered.model, x), expected, strict=True):
        assert support.relative_error(got, want.numpy()) <= 1e-4

# SPDX-License-Identifier: Apache-2.0
"""Traced graphs: readable, dynamic in the batch, at every opset."""

from __future__ import annotations

import gc
import importlib
from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest
import support
import torch
from onnxscript.function_libs.torch_lib.registration import default_registry
from onnxscript.values import TracedOnnxFunction
from torch import nn

from metaformer_export.artifacts import Traced
from metaformer_export.errors import InputError, LoweringError
from metaformer_export.export.graph import module_of
from metaformer_export.export.lower import check, lower
from metaformer_export.export.trace import _library_unparsed, trace
from metaformer_export.models import create_model, hornet
from metaformer_export.models.family import BuildOptions
from metaformer_export.runtime import eager


def test_each_filter_is_one_node_with_its_size(traced_small_gf: Traced) -> None:
    nodes = [node for node in traced_small_gf.model.graph if node.domain == "metaformer"]
    sizes = [(node.op_type, node.attributes["height"].value, node.attributes["width"].value) for node in nodes]
    assert sizes == [("GlobalFilter", 14, 14), ("GlobalFilter", 7, 7)]
    assert not any(node.op_type == "DFT" for node in traced_small_gf.model.graph)


def test_nodes_know_their_module(traced_small_gf: Traced, small_gf: nn.Module) -> None:
    modules = {module_of(node) for node in traced_small_gf.model.graph}
    assert modules <= set(dict(small_gf.named_modules()))
    assert {"stages.2.0.gnconv.dwconv", "stages.0.0.norm1", "head"} <= modules
    splits = {module_of(node) for node in traced_small_gf.model.graph if node.op_type == "Split"}
    assert "" not in splits


@pytest.mark.parametrize("opset", [18, 19, 21, 22, 23])
@pytest.mark.parametrize("form", ["portable", "plugin"])
def test_every_opset_lowers_to_a_valid_model_that_agrees(small_gf: nn.Module, opset: int, form: str) -> None:
    model = lower(trace(small_gf, support.spec_for("hornet_test_gf"), opset), form).model
    assert model.opset_imports[""] == opset
    check(ir.to_proto(model))
    for batch in (1, 3):
        x = support.image(batch, 3, 224, 224)
        assert support.relative_error(support.run_model(model, x)[0], eager.run(small_gf, x)[0]) <= 1e-4


def test_features_keep_their_names_and_values() -> None:
    module = support.fill_golden(hornet.HorNet(support.SMALL_GF, BuildOptions(features=True)))
    outputs = ("stage0", "stage1", "stage2", "stage3")
    lowered = lower(trace(module, support.spec_for("features", (96, 160), outputs)), "portable")
    assert [value.name for value in lowered.model.graph.outputs] == list(outputs)
    x = support.image(3, 3, 96, 160)
    for got, want in zip(support.run_model(lowered.model, x), eager.run(module, x), strict=True):
        assert got.shape == want.shape
        assert support.relative_error(got, want) <= 1e-4


def test_portable_means_standard_operators_only(traced_small_gf: Traced) -> None:
    model = lower(traced_small_gf, "portable").model
    assert {node.domain for node in model.graph} == {""}
    assert dict(model.opset_imports) == {"": 20}
    assert len(model.functions) == 0


def test_wrong_opsets_and_training_mode_are_refused() -> None:
    module = create_model("hornet_t")
    with pytest.raises(InputError, match="opset 17 is not supported; use 18 to 23"):
        trace(module, support.spec_for("hornet_t"), 17)
    with pytest.raises(ValueError, match="eval mode"):
        trace(module.train(), support.spec_for("hornet_t"))


class _Awkward(nn.Module):
    """What has to be decomposed before the exporter can translate it: a single chunk, and a change in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (whole,) = x.chunk(1, 1)
        doubled = whole * 2
        doubled.add_(1)
        return torch.cat(doubled.chunk(3, 1), 1).flatten(1)


def test_what_the_exporter_cannot_translate_is_decomposed_first() -> None:
    traced = trace(_Awkward().eval(), support.spec_for("awkward", (4, 4)))
    x = support.image(3, 3, 4, 4)
    assert not any(node.op_type.startswith("Sequence") for node in traced.model.graph)
    assert support.relative_error(support.run_model(traced.model, x)[0], 2 * x.reshape(3, -1) + 1) <= 1e-6


def test_nothing_is_decomposed_that_need_not_be(small_gf: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    assert trace(small_gf, support.spec_for("hornet_test_gf")).model.graph.inputs[0].shape[0] == "batch"


def test_the_collector_is_as_it_was(small_gf: nn.Module) -> None:
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="3 channels"):
        trace(small_gf, replace(support.spec_for("hornet_test_gf"), in_chans=1))
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_objects_that_the_program_froze_stay_so(small_gf: nn.Module) -> None:
    gc.freeze()
    try:
        trace(small_gf, support.spec_for("hornet_test_gf"))
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_an_invalid_graph_does_not_pass_the_check(traced_small_7x7: Traced) -> None:
    proto = ir.to_proto(lower(traced_small_7x7, "portable").model)
    bad = onnx.ModelProto()
    bad.CopyFrom(proto)
    bad.graph.node[0].input[0] = "nowhere"
    with pytest.raises(LoweringError, match="not valid ONNX"):
        check(bad)


def test_the_exporters_library_names_its_domain_without_parsing_itself() -> None:
    """All answers, against those of every fiftieth translation's parsed source."""
    importlib.import_module("onnxscript.function_libs.torch_lib.ops")  # which registers them
    translations = [each for op in default_registry.values() for each in (*op.overloads, *op.complex)]
    traced = [each for each in translations if isinstance(each, TracedOnnxFunction)]
    assert len(traced) > 100
    with _library_unparsed():
        named = [each.function_ir.domain for each in traced]
    assert named[::50] == [each.function_ir.domain for each in traced[::50]]
    assert traced[0].function_ir.name == traced[0].name, "parsed again"

# SPDX-License-Identifier: Apache-2.0
"""What an engine is, against what its file asks for. The inspector's texts are made here; no engine was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from tensorrt_contract.harness import VERSIONS, printed

from metaformer_export.errors import EngineError
from metaformer_export.export.precision import count_layers
from metaformer_export.runtime.tensorrt.engine import Engine, EngineReport, FallenBack
from metaformer_export.runtime.tensorrt.inspecting import examine, unexamined
from metaformer_export.runtime.tensorrt.options import EngineOptions

HALF = ir.DataType.FLOAT16
SCOPES = "pkg.torch.onnx.name_scopes"


def graph(*nodes: tuple[str, str, str, ir.DataType]) -> ir.Graph:
    """Nodes in a row, each a name, an operator, a module and a type."""
    value = ir.val("input", ir.DataType.FLOAT, [1, 4])
    made = []
    source = value
    for name, op_type, module, dtype in nodes:
        node = ir.node(op_type, [source], name=name, metadata_props={SCOPES: repr(["", module, op_type])})
        source = node.outputs[0]
        source.name, source.type, source.shape = name, ir.TensorType(dtype), value.shape
        made.append(node)
    return ir.Graph([value], [source], nodes=made, opset_imports={"": 20}, name="made")


def quantised() -> ir.Graph:
    """Two products of quantised matrices, each with a float16 step behind, as an INT8 file has them."""
    value = ir.val("input", HALF, [1, 4])
    made = []

    def add(op_type: str, name: str, module: str, dtype: ir.DataType, *inputs: ir.Value) -> ir.Value:
        node = ir.node(op_type, inputs, name=name, metadata_props={SCOPES: repr(["", module, op_type])})
        (output,) = node.outputs
        output.name, output.type, output.shape = name, ir.TensorType(dtype), value.shape
        made.append(node)
        return output

    source = value
    for index in range(2):
        module = f"stages.{index}.mlp"
        coded = add("QuantizeLinear", f"q{index}", module, ir.DataType.INT8, source)
        read = add("DequantizeLinear", f"dq{index}", module, HALF, coded)
        weight = add("DequantizeLinear", f"dw{index}", module, HALF, value)
        product = add("MatMul", f"fc{index}", module, HALF, read, weight)
        source = add("LayerNormalization", f"norm{index}", f"stages.{index}.norm", HALF, product)
    return ir.Graph([value], [source], nodes=made, opset_imports={"": 20}, name="quantised")


def layer(nodes: str, taken: str, given: str, kind: str = "gemm", name: str = "kernel") -> dict[str, Any]:
    metadata = "\x1f".join(f"[ONNX Layer: {each}]" for each in nodes.split())
    ends = {key: [{"Name": key, "Format/Datatype": text}] for key, text in (("Inputs", taken), ("Outputs", given))}
    return {"Name": name, "LayerType": kind, "Metadata": metadata, **ends}


def text(*layers: dict[str, Any]) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": []})


NODES = graph(
    ("conv", "Conv", "stages.0.blocks.0.mixer", HALF),
    ("gelu", "Gelu", "stages.0.blocks.0.mlp", HALF),
    ("filter", "GlobalFilter", "stages.1.blocks.0.filter", ir.DataType.FLOAT),
    ("move", "Transpose", "stages.1", HALF),
    ("cast", "Cast", "stages.1", HALF),
)


def test_nodes_are_counted_by_group_and_type() -> None:
    report = examine(
        text(
            layer("conv gelu", "Half", "Row major linear FP16 format"),
            layer("filter", "Float", "Float", "PluginV3"),
            layer("cast", "Float", "Half", "kgen"),
            layer("", "Half", "Half", "Reformat", "Reformatting CopyNode for Input Tensor 0"),
        ),
        NODES,
    )
    assert report.wanted == {"stages.0": {"fp16": 2}, "stages.1": {"fp32": 1}}
    assert report.got == {"stages.0": {"fp16": 2}, "stages.1": {"fp32": 1}}
    assert (report.layers, report.casts, report.reformats) == (4, 1, 1)
    assert report.plugins == {"GlobalFilter": 1}
    assert not report.fallen_back
    assert not report.silent_float32


def test_layers_that_fell_back_are_named_with_their_modules() -> None:
    report = examine(text(layer("conv", "Float", "Float"), layer("gelu", "Half", "Half")), NODES)
    (fallen,) = report.fallen_back
    assert fallen.modules == ("stages.0.blocks.0.mixer",)
    assert fallen.wanted == "fp16"
    assert report.got == {"stages.0": {"fp32": 1, "fp16": 1}}
    assert not report.silent_float32


def engine(report: EngineReport) -> Engine:
    return Engine(
        Path("model.plan"), "model.onnx", "11.4.0.106", "made", 90, (), (1, 8, 32), EngineOptions(), 1.0, report
    )


def test_an_engine_without_any_low_precision_fails() -> None:
    report = examine(text(layer("conv gelu", "Float", "Float"), layer("filter", "Float", "Float")), NODES)
    assert report.silent_float32
    assert engine(report).failures == (
        "the engine computes in float32 what model.onnx has in a lower precision, first stages.0.blocks.0.mixer, "
        "stages.0.blocks.0.mlp",
    )


def test_a_float32_engine_of_a_float32_file_is_what_was_asked_for() -> None:
    nodes = graph(("conv", "Conv", "stages.0", ir.DataType.FLOAT))
    assert not examine(text(layer("conv", "Float", "Float")), nodes).silent_float32
    assert not EngineReport(0, {}, {}).silent_float32


def test_a_fused_layer_counts_in_the_narrowest_float_type_at_its_borders() -> None:
    report = examine(text(layer("conv", "Float", "Half")), NODES)
    assert report.got == {"stages.0": {"fp16": 1}}
    assert examine(text(layer("conv", "BFloat16", "Float")), NODES).got == {"stages.0": {"bf16": 1}}


def test_layers_without_metadata_go_by_their_names() -> None:
    each = layer("", "Half", "Half", name="conv + gelu")
    assert examine(text(each), NODES).got == {"stages.0": {"fp16": 2}}


@pytest.mark.parametrize("said", ["", "[]", '{"Layers": ["conv"]}', '{"Layers": [{}]}'])
def test_what_cannot_be_read_is_an_error(said: str) -> None:
    with pytest.raises(EngineError, match=r"inspector says nothing|names of layers only"):
        examine(said, NODES)


def test_an_engine_in_which_no_type_is_told_does_not_fail_and_is_said() -> None:
    unknown = "N/A due to dynamic shapes"
    report = examine(text(layer("conv gelu", unknown, unknown), layer("filter", "Float", "Float", "PluginV3")), NODES)
    assert (report.got, report.unknown) == ({"stages.1": {"fp32": 1}}, 2)
    assert report.tells_no_types
    assert not report.silent_float32
    assert engine(report).failures == ()
    (remark,) = report.remarks
    assert remark.startswith("TensorRT's inspector does not say in which types the engine computes; only its time")
    assert unexamined(NODES, "made up.").remarks[0].count("computes (made up); only") == 1
    assert engine(unexamined(NODES, "made up.")).failures == ()


def test_one_node_of_a_known_low_type_is_no_silence() -> None:
    report = examine(text(layer("conv", "N/A", "N/A"), layer("gelu", "Half", "Half")), NODES)
    assert (report.unknown, report.tells_no_types, report.remarks) == (1, False, ())


def many(count: int) -> ir.Graph:
    return graph(*((f"gemm{i}", "Gemm", f"stages.{i}", HALF) for i in range(count)))


@pytest.mark.parametrize(("in_float32", "fails"), [(2, False), (3, True), (4, True)])
def test_an_engine_that_is_mostly_float32_fails(in_float32: int, fails: bool) -> None:
    made = [layer(f"gemm{i}", *(["Float" if i < in_float32 else "Half"] * 2)) for i in range(5)]
    unknown = [layer("gemm5", "N/A", "N/A"), layer("gemm6", "N/A", "N/A")]
    report = examine(text(*made, *unknown), many(7))
    assert report.computed == {"fp16": {"fp32": in_float32, "fp16": 5 - in_float32}}
    assert report.float32_of_low == (in_float32, 5)
    said = (
        f"the engine computes in float32 {in_float32} of 5 nodes that model.onnx has in a lower precision, "
        "first stages.0, stages.1, stages.2",
    )
    assert engine(report).failures == (said if fails else ())


@pytest.mark.parametrize(("known", "fails"), [(1, False), (9, False), (10, True), (20, True)])
def test_an_engine_of_which_few_nodes_are_known_is_not_judged_by_them(known: int, fails: bool) -> None:
    kinds = ["Float"] * known + ["N/A"] * (20 - known)
    report = examine(text(*(layer(f"gemm{i}", kind, kind) for i, kind in enumerate(kinds))), many(20))
    assert (report.silent_float32, report.mostly_float32, report.tells_few_types) == (fails, fails, not fails)
    assert bool(engine(report).failures) == fails
    said = (
        f"TensorRT's inspector says of few nodes in which types they compute ({known} of the 20 that the file has in "
        "a lower precision); only the engine's time and its parity tell whether it is in the precision of the file."
    )
    assert report.remarks == (() if fails else (said,))


def test_two_of_three_known_nodes_in_float32_are_no_failure_of_two_hundred() -> None:
    made = [layer(f"gemm{i}", kind, kind) for i, kind in enumerate(["Float", "Float", "Half"] + ["N/A"] * 197)]
    report = examine(text(*made), many(200))
    assert (report.float32_of_low, report.mostly_float32, engine(report).failures) == ((2, 3), False, ())


def test_one_known_product_does_not_tell_that_nothing_is_in_int8() -> None:
    half = EngineReport(1, {"model": {"int8": 4}}, {}, computed={"int8": {"fp16": 2}})
    fewer = EngineReport(1, {"model": {"int8": 4, "fp16": 1}}, {}, computed={"int8": {"fp16": 1}, "fp16": {"fp16": 1}})
    assert (half.nothing_in_int8, fewer.nothing_in_int8) == (True, False)


def test_a_float32_island_between_halves_does_not_hide_silent_float32() -> None:
    nodes = graph(("norm", "LayerNormalization", "stages.0", ir.DataType.FLOAT), ("conv", "Conv", "stages.0", HALF))
    report = examine(text(layer("norm", "Half", "Half", "kgen"), layer("conv", "Float", "Float")), nodes)
    assert report.computed["fp16"] == {"fp32": 1}
    assert report.silent_float32


@pytest.mark.parametrize(
    ("fused", "unknown"),
    [
        (layer("", "Half", "Half", "Myelin", "{ForeignNode[fc0...norm1]}"), 1),
        (layer("", "Half", "Half", "Myelin", "{ForeignNode[norm0...fc1]}"), 1),
        (layer("fc0 norm0 fc1 norm1", "Half", "Half", "Myelin"), 2),
        (layer("fc0 norm0 fc1 norm1", "Float", "Float", "Myelin"), 4),
    ],
)
def test_products_fused_into_one_layer_do_not_tell_that_nothing_is_in_int8(fused: dict[str, Any], unknown: int) -> None:
    report = examine(text(fused), quantised())
    assert (report.unknown, report.nothing_in_int8) == (unknown, False)
    assert "int8" not in report.computed
    named = fused | {"TacticName": "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tile"}
    assert set(examine(text(named), quantised()).computed["int8"]) == {"fp16"}


def test_half_of_the_nodes_in_float32_is_a_note_only() -> None:
    report = examine(text(*(layer(f"gemm{i}", *([kind] * 2)) for i, kind in enumerate(("Float", "Half")))), many(2))
    assert (report.float32_of_low, engine(report).failures) == ((1, 2), ())
    assert len(report.fallen_back) == 1


def test_products_of_an_int8_file_are_counted_in_int8_and_norms_as_they_are_asked() -> None:
    made = quantised()
    assert count_layers(made) == {"stages.0": {"int8": 1, "fp16": 1}, "stages.1": {"int8": 1, "fp16": 1}}
    report = examine(
        text(
            layer("q0", "Half", "Int8", "kgen"),
            layer("dq0 dw0 fc0", "Int8", "Half"),
            layer("norm0 q1", "Half", "Int8", "kgen"),
            layer("dq1 dw1 fc1 norm1", "Int8", "Int8", "fusion"),
        ),
        made,
    )
    assert report.computed == {"int8": {"int8": 2}, "fp16": {"fp16": 2}}
    assert (report.fallen_back, engine(report).failures) == ((), ())


def test_int8_that_runs_in_float16_has_fallen_back() -> None:
    report = examine(
        text(layer("dq0 dw0 fc0", "Int8", "Half"), layer("fc1", "Half", "Half"), layer("norm0 norm1", "Half", "Half")),
        quantised(),
    )
    assert report.fallen_back == (FallenBack("kernel", ("stages.1.mlp",), "int8", "fp16"),)
    assert report.computed == {"int8": {"int8": 1, "fp16": 1}, "fp16": {"fp16": 2}}
    assert engine(report).failures == ()


def test_an_int8_engine_without_int8_fails_although_its_norm_writes_int8() -> None:
    report = examine(
        text(layer("norm0 q1", "Half", "Int8", "kgen"), layer("fc0", "Half", "Half"), layer("fc1", "Half", "Half")),
        quantised(),
    )
    assert report.computed == {"int8": {"fp16": 2}, "fp16": {"fp16": 1}}
    assert engine(report).failures == (
        "the engine computes nothing in int8, which model.onnx has in 2 nodes, first stages.0.mlp, stages.1.mlp",
    )
    unknown = examine(text(layer("fc0 fc1", "N/A", "N/A"), layer("norm0", "Half", "Half")), quantised())
    assert (unknown.unknown, engine(unknown).failures) == (2, ())


def test_a_layer_that_quantises_its_own_input_hides_how_it_multiplies() -> None:
    report = examine(text(layer("q0 dq0 dw0 fc0", "Half", "Half", "fusion")), quantised())
    assert (report.computed, report.unknown) == ({}, 1)


def test_a_network_fused_into_one_layer_with_float32_borders_is_unknown() -> None:
    names = " ".join(f"gemm{i}" for i in range(4))
    report = examine(text(layer(names, "Float", "Float", "Myelin", "{ForeignNode[gemm0...gemm3]}")), many(4))
    assert (report.fallen_back, report.unknown, report.tells_no_types) == ((), 4, True)
    without_metadata = layer("", "Float", "Float", "Myelin", "{ForeignNode[gemm0...gemm3]}")
    assert examine(text(without_metadata), many(4)).unknown == 2
    cast_inside = examine(text(layer("conv cast", "Float", "Float", "kgen")), NODES)
    assert (cast_inside.fallen_back, cast_inside.unknown) == ((), 1)


def test_a_kernel_of_several_products_that_names_its_type_is_known() -> None:
    fused = layer("gemm0 gemm1", "Float", "Float") | {"TacticName": "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tile"}
    report = examine(text(fused), many(2))
    assert report.fallen_back == (FallenBack("kernel", ("stages.0", "stages.1"), "fp16", "fp32"),)
    assert report.silent_float32


def test_a_node_counts_once_in_the_layer_that_multiplies() -> None:
    moves = layer("gemm0", "Half", "Half", "kgen", "__myl_Move")
    report = examine(text(moves, layer("gemm0", "Float", "Float"), moves), many(1))
    assert report.computed == {"fp16": {"fp32": 1}}


def test_casts_that_the_file_has_not_are_counted_apart() -> None:
    copy = "Reformatting CopyNode for Input Tensor 0 to conv + gelu"
    report = examine(
        text(
            layer("cast", "Float", "Half", "kgen", "__myl_Cast"),
            layer("", "Float", "Half", "kgen", "__myl_Cast_myl0_3"),
            layer("", "Half", "Float", "Reformat", copy),
            layer("conv", "Half", "Float", "Reformat", "Reformatting CopyNode for Output Tensor 0 to conv"),
            layer("", "Half", "Half", "Reformat", copy),
            layer("conv gelu", "Half", "Half"),
        ),
        NODES,
    )
    assert (report.casts, report.unexpected_casts, report.reformats) == (1, 3, 3)
    assert report.computed == {"fp16": {"fp16": 2}}
    assert report.conversions == "3 unexpected casts, 3 reformats"
    assert report.remarks == ("the engine casts in 3 layers where its file does not.",)
    assert (EngineReport(0, {}, {}).conversions, EngineReport(0, {}, {}, reformats=1).conversions) == ("", "1 reformat")


def test_the_manifest_keeps_its_keys() -> None:
    told = engine(examine(text(layer("conv", "Float", "Float")), NODES)).told()
    assert set(told["report"]) == {
        *("layers", "wanted", "got", "fallen_back", "reformats", "casts", "plugins"),
        *("computed", "unknown", "unexpected_casts", "unread"),
    }
    assert told["report"]["fallen_back"] == (
        {"layer": "kernel", "modules": ("stages.0.blocks.0.mixer",), "wanted": "fp16", "got": "fp32"},
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_inspector_is_given_the_context_whose_shapes_are_set(version: str) -> None:
    code = """
        import tensorrt as trt
        from metaformer_export.runtime.tensorrt.inspecting import information

        given = []
        class Inspector:
            def __setattr__(self, name, value):
                assert hasattr(trt.EngineInspector, name)
                setattr(real, name, value)
                given.append((name, type(value).__name__))
            def get_engine_information(self, format):
                return f"{format.name} {given}"

        loaded = trt.Runtime(trt.Logger()).deserialize_cuda_engine(b"engine")
        real = loaded.create_engine_inspector()
        class Engine:
            def create_engine_inspector(self): return Inspector()
        print(information(Engine()))
        print(information(Engine(), loaded.create_execution_context()))
        """
    assert printed(version, code) == ["JSON []", "JSON [('execution_context', 'IExecutionContext')]"]

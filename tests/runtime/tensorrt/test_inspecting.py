# SPDX-License-Identifier: Apache-2.0
"""What an engine is, against what its file asks for. The inspector's texts are made here; no engine was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from metaformer_export.errors import EngineError
from metaformer_export.runtime.tensorrt.engine import Engine, EngineReport
from metaformer_export.runtime.tensorrt.inspecting import examine
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


def test_an_engine_without_any_low_precision_fails() -> None:
    report = examine(text(layer("conv gelu", "Float", "Float"), layer("filter", "Float", "Float")), NODES)
    assert report.silent_float32
    engine = Engine(
        Path("model.plan"), "model.onnx", "11.4.0.106", "made", 90, (), (1, 8, 32), EngineOptions(), 1.0, report
    )
    assert engine.failures == (
        "the engine computes in float32 what model.onnx has in a lower precision, first stages.0.blocks.0.mixer, "
        "stages.0.blocks.0.mlp",
    )


def test_a_float32_engine_of_a_float32_file_is_what_was_asked_for() -> None:
    nodes = graph(("conv", "Conv", "stages.0", ir.DataType.FLOAT))
    assert not examine(text(layer("conv", "Float", "Float")), nodes).silent_float32
    assert not EngineReport(0, {}, {}).silent_float32


def test_a_fused_layer_counts_in_the_narrowest_type_at_its_borders() -> None:
    report = examine(text(layer("conv", "Int8", "Half")), NODES)
    assert report.got == {"stages.0": {"int8": 1}}
    assert examine(text(layer("conv", "BFloat16", "Float")), NODES).got == {"stages.0": {"bf16": 1}}


def test_layers_without_metadata_go_by_their_names() -> None:
    each = layer("", "Half", "Half", name="conv + gelu")
    assert examine(text(each), NODES).got == {"stages.0": {"fp16": 2}}


@pytest.mark.parametrize("said", ["", "[]", '{"Layers": ["conv"]}', '{"Layers": [{}]}'])
def test_what_cannot_be_read_is_an_error(said: str) -> None:
    with pytest.raises(EngineError, match=r"inspector says nothing|names of layers only"):
        examine(said, NODES)

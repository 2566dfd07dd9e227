# SPDX-License-Identifier: Apache-2.0
"""Layers from the inspector's JSON, in the schemas of TensorRT 8 to 11. The texts are shortened."""

from __future__ import annotations

import json
from typing import Any

import pytest

from metaformer_export.runtime.tensorrt.layers import Layer, read_layers

CONVOLUTION_8 = {
    "Name": "conv1 + relu1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "x",
            "Location": "Device",
            "Dimensions": [16, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
        }
    ],
    "Outputs": [
        {
            "Name": "y",
            "Location": "Device",
            "Dimensions": [16, 256, 28, 28],
            "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
        }
    ],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw",
    "TacticValue": "0x11bde0e1d9f2f35d",
}
GEMM_10 = {
    "Name": "node_MatMul_92+node_MatMul_93_myl0_5",
    "LayerType": "gemm",
    "Inputs": [
        {"Name": "a", "Dimensions": [1, 16], "Format/Datatype": "Half"},
        {"Name": "size", "Dimensions": [1], "Format/Datatype": "Int64"},
    ],
    "Outputs": [{"Name": "b", "Dimensions": [1, 16], "Format/Datatype": "Half"}],
    "TacticName": "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: node_MatMul_92]\x1f[ONNX Layer: node_MatMul_93]",
}
FUSED_11 = {
    "Name": "__myl_CastMulAdd_myl0_7",
    "LayerType": "kgen",
    "Inputs": [
        {
            "Name": "a",
            "Dimensions": [-1, 16],
            "Format": "Row major linear FP32 format (kLINEAR)",
            "Datatype": "BFloat16",
        }
    ],
    "Outputs": [{"Name": "b", "Dimensions": [-1, 16], "Format": "N/A due to dynamic shapes", "DataType": "Float"}],
    "TacticName": "__myl_CastMulAdd_0x1a2b3c_fp16",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: node_Mul_1]",
}
UNTOLD = [{"Name": "a", "Dimensions": [-1, 16], "Format/Datatype": "N/A due to dynamic shapes"}]


def only(layer: dict[str, Any], **changes: Any) -> Layer:
    """Read back from a whole text, with what TensorRT 11 writes beside the layers."""
    tensor = {"Name": "a", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 16], "Location": "Device"}
    (read,) = read_layers(json.dumps({"Layers": [layer | changes], "I/O Tensors": [tensor]}))
    return read


def test_a_layer_of_tensorrt_8_is_read() -> None:
    read = only(CONVOLUTION_8)
    assert (read.read, read.written, read.kernel) == ({"int8"}, {"fp16"}, "int8")
    assert (read.nodes, read.multiplies, read.idle) == (("conv1", "relu1"), True, False)


def test_a_layer_of_tensorrt_10_is_read() -> None:
    read = only(GEMM_10)
    assert (read.read, read.written, read.kernel) == ({"fp16"}, {"fp16"}, "fp16")
    assert (read.nodes, read.multiplies) == (("node_MatMul_92", "node_MatMul_93"), True)


def test_a_layer_of_tensorrt_11_is_read_by_datatype_and_not_by_format() -> None:
    read = only(FUSED_11)
    assert (read.read, read.written, read.kernel) == ({"bf16"}, {"fp32"}, "")
    assert (read.nodes, read.multiplies) == (("node_Mul_1",), False)


@pytest.mark.parametrize("said", ["N/A due to dynamic shapes", "N/A", "", "UInt8", "Int32", "Int64", "Bool"])
@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype", "DataType"])
def test_what_is_no_float_type_or_int8_is_no_type(key: str, said: str) -> None:
    assert only(GEMM_10, Inputs=[{"Name": "a", key: said}], Outputs=[]).types == frozenset()


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Half", "fp16"),
        ("FP16", "fp16"),
        ("kHALF", "fp16"),
        ("BFloat16", "bf16"),
        ("Bf16", "bf16"),
        ("Float", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("Row major Int8 format", "int8"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
    ],
)
def test_types_are_read_in_words_and_sentences(said: str, name: str) -> None:
    for key in ("Format/Datatype", "Datatype", "DataType"):
        assert only(GEMM_10, Inputs=[{"Name": "a", key: said}], Outputs=[]).types == {name}


@pytest.mark.parametrize(
    ("tactic", "weights", "kernel"),
    [
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs", None, "int8"),
        ("sm70_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc", None, "fp16"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", None, "bf16"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize32x32x64", None, "fp32"),
        ("ampere_h16816gemm_256x128_ldg8_nn_v1", None, "fp16"),
        ("ampere_fp16_s16816gemm_fp16_64x64", None, "fp16"),
        ("ampere_sgemm_128x32_nn", None, "fp32"),
        ("__myl_FcMulAdd_0xfp16", {"Type": "Half", "Count": 0}, ""),
        ("__myl_FcMulAdd", None, ""),
        ("", {"Type": "Half", "Count": 9408}, "fp16"),
        ("0x0000000000000000", {"Type": "Float", "Count": 12}, "fp32"),
        ("sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_nhwc", {"Type": "Half", "Count": 9}, "int8"),
    ],
)
def test_a_kernel_or_its_weights_tell_a_type_where_no_tensor_does(
    tactic: str, weights: dict[str, Any] | None, kernel: str
) -> None:
    read = only(GEMM_10, Inputs=UNTOLD, Outputs=UNTOLD, TacticName=tactic, Weights=weights)
    assert (read.types, read.kernel) == (frozenset(), kernel)


@pytest.mark.parametrize(
    ("name", "nodes", "partial"),
    [
        ("a + b", ("a", "b"), False),
        ("node_MatMul_92_myl0_5", ("node_MatMul_92",), False),
        ("{ForeignNode[a + b...c]}", ("a", "b", "c"), True),
        ("Reformatting CopyNode for Input Tensor 0 to a + b", (), False),
    ],
)
def test_a_layer_without_metadata_names_its_nodes(name: str, nodes: tuple[str, ...], partial: bool) -> None:
    read = only(GEMM_10, Name=name, Metadata="")
    assert (read.nodes, read.partial) == (nodes, partial)

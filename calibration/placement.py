# SPDX-License-Identifier: Apache-2.0
"""Which layers compute in eight bits on which target, as data with the reason.

Only layers that multiply matrices gain: everything between them would be converted to eight bits and back. So what is
quantised are the inputs of convolutions, linear layers and attention products, by kind; all else stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["linear", "matmul", "convolution", "stem", "grouped", "depthwise", "lone depthwise", "product", "head"]
"""What multiplies: a linear layer as a 1x1 convolution or as MatMul, a dense convolution, the one that reads the image,
filters for each group of channels or for each channel that read a convolution's result, or that read another, two
computed matrices (attention), the classifier.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)
LAYERS = ("Conv", "MatMul", "Gemm")
"""Operators that multiply."""
SMALLEST_RANGE = 2e-3
"""Of a tensor or channel in a graph with float16 scales, which hold a 255th of it to one percent."""
QuantizedFor = Literal["cpu", "onnxruntime", "openvino", "tensorrt"]
"""ONNX Runtime and OpenVINO with one file, each of them alone, TensorRT."""


@dataclass(frozen=True)
class Rule:
    """Whether a kind of layer is quantised, and why."""

    quantised: bool
    reason: str


@dataclass(frozen=True)
class Placement:
    """What one target wants of a quantised graph.

    Attributes:
        rules: by kind of layer.
        outputs: operators whose results are quantised as well.
        residuals: whether one branch of each residual addition is.
        symmetric: activations as signed bytes around zero, else as unsigned ones between their extremes.
        centred: kinds of layer whose input, where it is one-sided, is shifted before it is quantised as signed bytes.
        tanh_gelu: whether a GELU whose result is quantised at once, in steps much larger than what its tanh
            approximation is off (ONNX's Gelu with approximate="tanh"), is computed by that.
        offsets: whether every convolution in eight bits has to have an offset.
    """

    rules: Mapping[Kind, Rule]
    outputs: frozenset[str]
    residuals: bool
    symmetric: bool
    tanh_gelu: bool = False
    centred: frozenset[Kind] = frozenset()
    offsets: bool = False


_COMMON: Mapping[Kind, Rule] = {
    "linear": Rule(True, "most of the arithmetic; its errors average out over the channels that are summed"),
    "matmul": Rule(True, "much of the arithmetic; its errors average out over the channels that are summed"),
    "convolution": Rule(True, "much arithmetic; its errors average out over the values that are summed"),
    "stem": Rule(True, "an image has eight bits to begin with"),
    "head": Rule(True, "its inputs are means over the image, which keeps their errors small"),
    "product": Rule(False, "attention: small matrices, and softmax wants the range"),
}
# Measured at batch 1 on two cores with AVX2, ms in ONNX Runtime without and with them in eight bits: HorNet's 7x7
# filters, which read a convolution, 48.7 and 40.7; FocalNet's, which read a GELU, 43.7 and 44.4; PoolFormer's 1x1,
# which scale a norm, 18.6 and 20.0. The stem: PoolFormer 18.5 and 19.0, HorNet 41.5 and 41.1, FocalNet 45.7 and 47.1.
# Products of attention, least of 25: BOAT-Swin-T 64.6 and 66.2, ACmix-Swin-T 53.6 and 54.6, CAFormer-S18 39.7 and 39.2.
_ON_CPU: Mapping[Kind, Rule] = {
    **_COMMON,
    "stem": Rule(False, "three input channels; measured: not faster, and its result is what all blocks add to"),
    "grouped": Rule(True, "its input is in eight bits already; measured: faster"),
    "depthwise": Rule(True, "its input is in eight bits already; measured: faster"),
    "lone depthwise": Rule(False, "measured: to convert its input takes longer than so few products win"),
}
PLACEMENTS: Mapping[QuantizedFor, Placement] = {
    # ONNX Runtime runs a convolution in eight bits only if its result is quantised, too.
    "cpu": Placement(_ON_CPU, outputs=frozenset({"Conv"}), residuals=False, symmetric=False),
    # GELU by erf and by tanh, ms, least of 25: FocalNet-T 42.3 and 40.1, HorNet-T 40.0 and 38.7, ACmix-Swin-T 52.0 and
    # 50.5; in OpenVINO FocalNet-T takes 45.6 and 59.5.
    "onnxruntime": Placement(_ON_CPU, outputs=frozenset({"Conv"}), residuals=False, symmetric=False, tanh_gelu=True),
    # OpenVINO needs no eight-bit results: without, HorNet takes 48.1 ms instead of 51.7, PoolFormer 16.9, not 20
    "openvino": Placement(
        {
            **_ON_CPU,
            "matmul": Rule(False, "OpenVINO 2026.4 cannot load it in eight bits (BOAT)"),
            "grouped": Rule(False, "measured: OpenVINO's kernel takes three times as long in eight bits"),
        },
        outputs=frozenset(),
        residuals=False,
        symmetric=False,
        # OpenVINO 2026.4 multiplies what a convolution without one gives by its scale once for each node that reads it,
        # if the batch is dynamic: Sigmoid(y) + y is off by all of its spread, and ACmix's and BOAT's logits were.
        offsets=True,
    ),
    "tensorrt": Placement(
        {
            **_COMMON,
            "grouped": Rule(False, "reported slower in INT8 than in FP16"),
            "depthwise": Rule(False, "reported slower in INT8 than in FP16 (ConvNeXt's 7x7)"),
            "lone depthwise": Rule(False, "reported slower in INT8 than in FP16"),
        },
        outputs=frozenset(),
        residuals=True,
        symmetric=True,
        # CAFormer's reads a norm of squares, -0.4 to 11: its error on digits is 1.05 % instead of 1.9 %. Other layers
        # have nothing of it: all of them, behind GELU and StarReLU, PoolFormer 1.91 and 1.88 %, HorNet 1.79 and 1.78,
        # FocalNet 2.05 and 2.07, BOAT-Swin 1.47 and 1.37, ACmix-Swin 0.83 and 0.83, CAFormer but for its head 1.90.
        centred=frozenset({"head"}),
    ),
}

HIGH_PRECISION: Mapping[str, str] = {
    "LayerNormalization": "its squares need the range",
    "InstanceNormalization": "its squares need the range",
    "GroupNormalization": "its squares need the range",
    "Gelu": "no kernel with eight bits; its small negative values would be lost",
    "Erf": "no kernel with eight bits; its small negative values would be lost",
    "Softmax": "its large ratios need the range",
    "Relu": "part of StarReLU, whose square needs the range",
    "Sigmoid": "no kernel with eight bits",
    "Mul": "gates multiply errors of both factors",
    "DFT": "sums over the whole image",
}
"""Operators that never read quantised values, and why."""

# SPDX-License-Identifier: Apache-2.0
"""A lowered graph and its ranges -> the quantised graph of each target."""

from __future__ import annotations

from collections.abc import Mapping

from .artifacts import Converted, Lowered, Target
from .calibration.images import ImageSet
from .calibration.placement import QuantizedFor
from .calibration.quantize import Ranges, quantize
from .runtime.observe import largest_magnitudes
from .runtime.saturation import weight_bits
from .runtime.threads import available_threads

DELIVERED, FOR_TENSORRT = "model.onnx", "model.tensorrt.onnx"
ON_CPU: Mapping[Target, QuantizedFor] = {
    "auto": "cpu",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "cpu",
}
FLOAT_FORM: Mapping[Target, str] = {target: "openvino" if target == "openvino" else "portable" for target in ON_CPU}
"""What the target runs best in float, which INT8 is to be faster than."""
INT8_FORM: Mapping[Target, str] = {
    "auto": "portable",
    "onnx": "int8",
    "openvino": "openvino_int8",
    "tensorrt": "portable",
}
"""What is quantised."""


def quantized_graphs(
    lowered: Lowered, ranges: Ranges, images: ImageSet, target: Target, keep: Mapping[str, str]
) -> dict[str, Converted]:
    """By the name of the file: unsigned activations for this machine's processor, and, in float16, signed ones for
    TensorRT, both with the same ranges.

    Args:
        keep: modules that stay in high precision, with the reason.
    """
    peaks = largest_magnitudes(lowered, images.batch, available_threads())
    return {
        DELIVERED: quantize(lowered, ranges, ON_CPU[target], keep=keep, weight_bits=weight_bits()),
        FOR_TENSORRT: quantize(lowered, ranges, "tensorrt", keep=keep, max_abs=peaks),
    }

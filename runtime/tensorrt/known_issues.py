# SPDX-License-Identifier: Apache-2.0
"""What is known to go wrong in TensorRT with graphs that are valid ONNX: which nodes, in which versions, what to do.

An error is a graph that TensorRT refuses or is known to compute wrongly; a warning is one where the build may fail
or the numbers may be wrong, which parity with eager PyTorch shows afterwards. Of issues that are open, no version
is known that fixes them: they are told of in every later one. Numbers of issues are of github.com/NVIDIA/TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from . import patterns

Version = tuple[int, ...]
"""Of TensorRT, for instance (10, 8) or (11, 2, 1)."""
Batch = tuple[int, int, int]
"""Smallest, usual and largest batch of an optimisation profile."""
Severity = Literal["error", "warning", "info"]

_ISSUES = "https://github.com/NVIDIA/TensorRT/issues/"
_IF_NO_KERNEL = (
    "If the build ends with 'Could not find any implementation for node', keep that module in FP32 or use 10.16."
)
_OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
_QUANTISED_TYPES = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html"


@dataclass(frozen=True)
class KnownIssue:
    """One thing that goes wrong.

    Attributes:
        key: its name, for tests and for reports.
        title: what goes wrong, as the end of a sentence that begins with the node.
        link: where it is documented or was reported.
        first, fixed: the versions that have it, `fixed` not among them; None where there is no such end.
        concerns: whether a node has what the issue needs.
        remedy: what to do, a sentence.
        changing_batch: whether it needs a batch that changes from run to run.
    """

    key: str
    title: str
    link: str
    first: Version | None
    fixed: Version | None
    concerns: Callable[[ir.Node], bool]
    severity: Severity
    remedy: str
    changing_batch: bool = False

    def affects(self, version: Version, batch: Batch) -> bool:
        """Whether engines of that version have it with that profile."""
        if self.changing_batch and batch[0] == batch[2]:
            return False
        return (self.first is None or self.first <= version) and (self.fixed is None or version < self.fixed)


KNOWN_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        "dft",
        "is refused by TensorRT's parser before 11.2",
        "https://github.com/NVIDIA/TensorRT/releases/tag/v11.2",
        None,
        (11, 2),
        patterns.is_dft,
        "error",
        "Build from the portable or the plugin form, which have matrix products or a plugin instead, or use 11.2.",
    ),
    KnownIssue(
        "dft-half",
        "has FP16 or BF16 at a length that is not known to be a power of two, which cuFFT does not do",
        _OPERATORS,
        (11, 2),
        None,
        patterns.transforms_other_lengths_in_half,
        "error",
        "Keep that module in FP32.",
    ),
    KnownIssue(
        "topk-3840",
        f"takes more than {patterns.TOP_K_MAX} elements, at which TensorRT's TopK ends in every version",
        "https://github.com/NVIDIA/TensorRT/issues/4244",
        None,
        None,
        patterns.takes_too_many,
        "error",
        "Export at a smaller --resolution, or without --int8 and with TensorRT 10.9 or later, whose engines hold the "
        "BalancedClustering plugin (up to 4096 tokens in a group).",
    ),
    KnownIssue(
        "grouped-conv-fp16",
        "is an FP16 convolution in groups, for which TensorRT 11.2.1 was reported to find no kernel on an RTX 4090",
        f"{_ISSUES}4838",
        (11, 2),
        None,
        patterns.convolves_groups,
        "warning",
        _IF_NO_KERNEL,
    ),
    KnownIssue(
        "depthwise-conv-fp16",
        "is a depthwise FP16 convolution; for some in groups TensorRT 11.2.1 was reported to find no kernel",
        f"{_ISSUES}4838",
        (11, 2),
        None,
        patterns.convolves_depthwise,
        "info",
        _IF_NO_KERNEL,
    ),
    KnownIssue(
        "attention-of-transposed-input",
        "is a Transpose of a network input that TensorRT 11.2 folds into fused attention with wrong strides",
        f"{_ISSUES}4826",
        (11, 2),
        None,
        patterns.turns_network_input_into_operand,
        "error",
        "Give the input in the order that attention reads, or keep the attention in FP32.",
    ),
    KnownIssue(
        "residual-into-concat",
        "is fused with its activation and an addition of what a Concat reads as well, which 11.2 may get wrong in FP16",
        f"{_ISSUES}4854",
        (11, 2),
        None,
        patterns.adds_to_part_of_concat,
        "warning",
        "Parity will tell; if it fails there, keep that module in FP32.",
    ),
    KnownIssue(
        "aot-plugin-leak",
        "leaks GPU memory as an ahead-of-time plugin at every change of shapes in one execution context",
        f"{_ISSUES}4849",
        (11, 1),
        None,
        patterns.is_plugin,
        "warning",
        "Sessions of this tool have one execution context for each batch size; others should.",
        changing_batch=True,
    ),
    KnownIssue(
        "uint8",
        "computes with UINT8, which TensorRT has as network inputs and outputs only",
        _OPERATORS,
        None,
        None,
        patterns.computes_with_uint8,
        "error",
        "Cast to float right after the network's input; quantise to INT8 around 0.",
    ),
    KnownIssue(
        "zero-point",
        "has a zero point that is not known to be 0",
        _OPERATORS,
        None,
        None,
        patterns.has_zero_point,
        "error",
        "Quantise symmetrically, for TensorRT.",
    ),
    KnownIssue(
        "int32-bias",
        "dequantises INT32, where TensorRT takes INT8, INT4, FP8 or FP4",
        "https://github.com/microsoft/onnxruntime/issues/14229",
        None,
        None,
        patterns.dequantises_int32,
        "error",
        "Leave the bias in floating point.",
    ),
    KnownIssue(
        "weight-axis",
        "has a quantised weight with scales along another axis than its output channels (0)",
        _QUANTISED_TYPES,
        None,
        None,
        patterns.scales_other_axis,
        "error",
        "Scale the weight along axis 0.",
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""What the rest of the exporter needs to know about a mixer op, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kernel import Kernel

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "metaformer"
VERSION = 1


@dataclass(frozen=True)
class MixerOp:
    """One operator of the metaformer domain.

    Attributes:
        op_type: name of the node.
        attributes: all of the node's own attributes; TensorRT's parser fails on a missing one.
        function: the operator's body in standard operators, for a model of the given opset.
        portable: writes the node's output in standard operators before the node, at whatever size it has;
            None where passes of the operator's own do that.
        float32: why it stays in float32 in a low-precision graph; "" if it need not.
        float32_inside: the node itself, unlike what it is expanded to, takes and gives 16-bit tensors all the same.
        float32_inputs: whether the layers that make its inputs stay with it.
        kernel: for GPUs, which TensorRT runs as a plugin.
    """

    op_type: str
    attributes: tuple[str, ...]
    function: Callable[[int], ir.Function]
    portable: Callable[[ir.Node], ir.Value] | None = None
    float32: str = ""
    float32_inside: bool = False
    float32_inputs: bool = False
    kernel: Kernel | None = None

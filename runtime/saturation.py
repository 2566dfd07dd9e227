# SPDX-License-Identifier: Apache-2.0
"""Whether this machine's eight-bit products overflow."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

_VALUES = 64
"""Products of a sum; enough for any vector unit."""


@cache
def weight_bits() -> int:
    """Bits that a weight may have so that sums of products with unsigned bytes are right: 8, or 7 where the processor
    adds pairs of products in 16 bits, as AVX2 does without VNNI.

    ONNX Runtime multiplies the largest values there are, which overflow if any do.
    """
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "largest",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [8, _VALUES])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [8, 16])],
        [helper.make_tensor("b", TensorProto.INT8, [_VALUES, 16], [127] * (_VALUES * 16))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"a": np.full((8, _VALUES), 255, np.uint8)})
    return 8 if bool((np.asarray(sums) == 255 * 127 * _VALUES).all()) else 7

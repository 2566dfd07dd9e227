# SPDX-License-Identifier: Apache-2.0
"""Weights that are the same, kept once."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_FEW = 16
"""Numbers by which most weights differ."""


def share_equal_weights(graph: ir.Graph) -> None:
    """Let readers of initializers of one type, shape and content read the first of them; the others go.

    Nothing is copied: onnx-ir's own passes for this hold all weights a second time, or cannot read transposed ones.
    """
    kept: dict[tuple[Any, ...], list[ir.Value]] = defaultdict(list)
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        array = tensor.numpy()
        alike = kept[tensor.dtype, array.shape, _bits(array).flat[:_FEW].tobytes()]
        same = next((each for each in alike if _equal(each, array)), None)
        if same is None:
            alike.append(value)
        else:
            ir.convenience.replace_all_uses_with(value, same)
            del graph.initializers[str(value.name)]


def _equal(value: ir.Value, array: NDArray[Any]) -> bool:
    """Whether the weight has exactly these bits."""
    return value.const_value is not None and np.array_equal(_bits(value.const_value.numpy()), _bits(array))


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """The numbers as unsigned integers: zeros of either sign differ, and a NaN equals itself."""
    return array.view(f"u{array.itemsize}")

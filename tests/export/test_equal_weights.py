# SPDX-License-Identifier: Apache-2.0
"""Equal weights become one; what differs in a single bit stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from metaformer_export.export.equal_weights import share_equal_weights

BIG = np.random.default_rng(0).random((40, 30), np.float32)


def _kept(*arrays: np.ndarray) -> list[int]:
    """Which weight each of as many readers reads afterwards."""
    values = [ir.val(f"w{i}", const_value=ir.tensor(array, name=f"w{i}")) for i, array in enumerate(arrays)]
    nodes = [ir.node("Identity", [value]) for value in values]
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([], outputs, nodes=nodes, initializers=values, opset_imports={"": 20})
    share_equal_weights(graph)
    read = [str(node.inputs[0].name) for node in nodes if node.inputs[0] is not None]
    assert set(graph.initializers) == set(read)
    return [int(name.removeprefix("w")) for name in read]


def _changed(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[-1, -1] += 1
    return changed


@pytest.mark.parametrize(
    ("arrays", "kept"),
    [
        ((BIG, BIG.copy(), BIG.T.copy().T), [0, 0, 0]),  # the last lies in memory column by column
        ((BIG, _changed(BIG), BIG.copy()), [0, 1, 0]),
        ((BIG[:4, :3], BIG[:4, :3].copy().reshape(3, 4)), [0, 1]),
        ((np.float32([0.0]), np.float32([-0.0])), [0, 1]),
        ((np.float32([np.nan]), np.float32([np.nan])), [0, 0]),
        ((np.zeros(1, np.float32), np.zeros(1, np.int32)), [0, 1]),
        ((np.array(3), np.array(3), np.array([3])), [0, 0, 2]),
        ((np.array([True]), np.array([True]), np.zeros(0), np.zeros(0)), [0, 0, 2, 2]),
    ],
)
def test_weights_of_the_same_bits_type_and_shape_become_one(arrays: tuple[np.ndarray, ...], kept: list[int]) -> None:
    assert _kept(*arrays) == kept

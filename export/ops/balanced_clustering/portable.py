# SPDX-License-Identifier: Apache-2.0
"""BalancedClustering in standard operators.

All groups of a level are split at once. Tokens are not normalised: their cosine is a product with
the centroid over their length, and the length is looked up once. Sharing between two centroids by
softmax is a sigmoid of the difference.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph import Builder, attribute, float_type, size
from .op import LEAST, OP_TYPE, ROUNDS, SHARPNESS, TINY


def expand(node: ir.Node) -> ir.Value:
    """The order (B, H, N) int64 of the node's queries (B, H, N, d), which may be float32 or float64."""
    q, levels = node.inputs[0], int(attribute(node, "levels"))
    if q is None:
        raise ValueError(f"{node.name} has no input")
    return _Clustering(Builder(node, mixer_op=OP_TYPE), q, node.outputs[0]).run(levels)


class _Clustering:
    """Writes the nodes of one clustering."""

    def __init__(self, build: Builder, q: ir.Value, order: ir.Value) -> None:
        self.build, self.q, self.result = build, q, order
        self.heads, self.tokens, self.dim = (size(q, axis) for axis in (1, 2, 3))
        self.dtype = float_type(q)

    def run(self, levels: int) -> ir.Value:
        if levels == 0:
            return self._image_order()
        tokens, lengths, order = self.q, self._length(self.q, keepdims=0), None
        for level in range(levels):
            tokens, lengths = self._grouped(tokens, level, -1, self.dim), self._grouped(lengths, level, 1, -1)
            sorting = self._sorting(tokens, lengths, level)
            order = sorting if order is None else self._picked(self._grouped(order, level, 1, -1), sorting)
            if level < levels - 1:
                rows = self._grouped(sorting, level, -1, 1)
                tokens = self.build.op("GatherND", [tokens, rows], batch_dims=3)
                lengths = self._picked(lengths, sorting)
        return self.build.op("Reshape", [order, self.build.ints("shape", 0, self.heads, self.tokens)])

    def _image_order(self) -> ir.Value:
        """0 .. N - 1 for every head of the batch."""
        batch = self.build.op("Shape", [self.q], start=0, end=1)
        shape = self.build.op("Concat", [batch, self.build.ints("shape", self.heads, self.tokens)], axis=0)
        return self.build.op("Expand", [self.build.constant("arange", np.arange(self.tokens)), shape])

    def _grouped(self, x: ir.Value, level: int, rows: int, columns: int) -> ir.Value:
        """(B, H, groups, rows, columns), one of which is the tokens of a group."""
        n = self.tokens >> level
        sides = (n if each == -1 else each for each in (rows, columns))
        return self.build.op("Reshape", [x, self.build.ints("shape", 0, self.heads, 2**level, *sides)])

    def _sorting(self, tokens: ir.Value, lengths: ir.Value, level: int) -> ir.Value:
        """(B, H, groups, 1, n) int64: how each group's tokens (B, H, groups, n, d) are to be arranged.

        Args:
            lengths: (B, H, groups, 1, n), of the tokens.
        """
        n = self.tokens >> level
        means = self._floats("halves", np.repeat(np.eye(2), n // 2, axis=1) / (n // 2))
        centroids = self._normalised(self.build.op("MatMul", [means, tokens]))
        turned = self.build.op("Transpose", [tokens], perm=(0, 1, 2, 4, 3))
        # What decides is how much nearer the first is than the second: a product with the difference of the two.
        sharpened = self._floats("sharpness", SHARPNESS * np.array([[1, -1], [-1, 1]]))
        for _ in range(ROUNDS):
            differences = self._cosines(self.build.op("MatMul", [sharpened, centroids]), turned, lengths)
            shares = self.build.op("Sigmoid", [differences])
            centroids = self._normalised(self.build.op("MatMul", [shares, tokens]))
        similar = self.build.op("Add", [self._cosines(centroids, turned, lengths), self._floats("one", 1.0)])
        first, second = self.build.node("Split", [similar], {"axis": 3, "num_outputs": 2}, outputs=2).outputs
        ratio = self.build.op("Div", [first, self.build.op("Max", [second, self._floats("least", LEAST)])])
        top = self.build.node(
            "TopK", [ratio, self.build.ints("n", n)], {"axis": -1, "largest": 0, "sorted": 1}, outputs=2
        )
        return top.outputs[1]

    def _cosines(self, centroids: ir.Value, turned: ir.Value, lengths: ir.Value) -> ir.Value:
        """(B, H, groups, 2, n)."""
        return self.build.op("Div", [self.build.op("MatMul", [centroids, turned]), lengths])

    def _picked(self, x: ir.Value, sorting: ir.Value) -> ir.Value:
        """(B, H, groups, 1, n) of each token, in the new order."""
        return self.build.op("GatherElements", [x, sorting], axis=4)

    def _length(self, x: ir.Value, keepdims: int = 1) -> ir.Value:
        norm = self.build.op("ReduceL2", [x, self.build.ints("axes", -1)], keepdims=keepdims)
        return self.build.op("Max", [norm, self._floats("tiny", TINY)])

    def _normalised(self, x: ir.Value) -> ir.Value:
        return self.build.op("Div", [x, self._length(x)])

    def _floats(self, name: str, numbers: object) -> ir.Value:
        return self.build.constant(name, np.array(numbers, self.dtype))

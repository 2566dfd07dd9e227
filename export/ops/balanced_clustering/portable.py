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
        tokens, lengths = self.q, self._length(self.q)
        order = None
        for level in range(levels):
            tokens, lengths = self._grouped(tokens, level, self.dim), self._grouped(lengths, level, 1)
            sorting = self._sorting(tokens, lengths, level)
            order = sorting if order is None else self._pick(order, sorting, level)
            if level < levels - 1:
                rows = self.build.op("Unsqueeze", [sorting, self.build.ints("axis", -1)])
                tokens, lengths = (self.build.op("GatherND", [each, rows], batch_dims=3) for each in (tokens, lengths))
        return self.build.op("Reshape", [order, self.build.ints("shape", 0, self.heads, self.tokens)])

    def _image_order(self) -> ir.Value:
        """0 .. N - 1 for every head of the batch."""
        batch = self.build.op("Shape", [self.q], start=0, end=1)
        shape = self.build.op("Concat", [batch, self.build.ints("shape", self.heads, self.tokens)], axis=0)
        return self.build.op("Expand", [self.build.constant("arange", np.arange(self.tokens)), shape])

    def _grouped(self, x: ir.Value, level: int, last: int) -> ir.Value:
        groups = 2**level
        return self.build.op(
            "Reshape", [x, self.build.ints("shape", 0, self.heads, groups, self.tokens // groups, last)]
        )

    def _sorting(self, tokens: ir.Value, lengths: ir.Value, level: int) -> ir.Value:
        """(B, H, groups, n) int64: how each group's tokens are to be arranged."""
        groups, n = 2**level, self.tokens >> level
        halves = self.build.op(
            "Reshape", [tokens, self.build.ints("shape", 0, self.heads, 2 * groups, n // 2, self.dim)]
        )
        means = self.build.op("ReduceMean", [halves, self.build.ints("axes", 3)], keepdims=0)
        centroids = self._normalised(
            self.build.op("Reshape", [means, self.build.ints("shape", 0, self.heads, groups, 2, self.dim)])
        )
        turned = self.build.op("Transpose", [tokens], perm=(0, 1, 2, 4, 3))
        signs = self._floats("sharpness", [[SHARPNESS], [-SHARPNESS]])
        lengths = self.build.op("Transpose", [lengths], perm=(0, 1, 2, 4, 3))
        for _ in range(ROUNDS):
            first, second = self._halves(self._cosines(centroids, turned, lengths))
            shares = self.build.op("Sigmoid", [self.build.op("Mul", [self.build.op("Sub", [first, second]), signs])])
            centroids = self._normalised(self.build.op("MatMul", [shares, tokens]))
        one = self._floats("one", 1.0)
        first, second = self._halves(self.build.op("Add", [self._cosines(centroids, turned, lengths), one]))
        ratio = self.build.op("Div", [first, self.build.op("Max", [second, self._floats("least", LEAST)])])
        flat = self.build.op("Squeeze", [ratio, self.build.ints("axis", 3)])
        top = self.build.node(
            "TopK", [flat, self.build.ints("n", n)], {"axis": -1, "largest": 0, "sorted": 1}, outputs=2
        )
        return top.outputs[1]

    def _cosines(self, centroids: ir.Value, turned: ir.Value, lengths: ir.Value) -> ir.Value:
        """(B, H, groups, 2, n)."""
        return self.build.op("Div", [self.build.op("MatMul", [centroids, turned]), lengths])

    def _halves(self, pair: ir.Value) -> tuple[ir.Value, ...]:
        return tuple(self.build.node("Split", [pair], {"axis": 3, "num_outputs": 2}, outputs=2).outputs)

    def _pick(self, order: ir.Value, sorting: ir.Value, level: int) -> ir.Value:
        grouped = self.build.op(
            "Reshape", [order, self.build.ints("shape", 0, self.heads, 2**level, self.tokens >> level)]
        )
        return self.build.op("GatherElements", [grouped, sorting], axis=3)

    def _length(self, x: ir.Value) -> ir.Value:
        norm = self.build.op("ReduceL2", [x, self.build.ints("axes", -1)], keepdims=1)
        return self.build.op("Max", [norm, self._floats("tiny", TINY)])

    def _normalised(self, x: ir.Value) -> ir.Value:
        return self.build.op("Div", [x, self._length(x)])

    def _floats(self, name: str, numbers: object) -> ir.Value:
        return self.build.constant(name, np.array(numbers, self.dtype))

# SPDX-License-Identifier: Apache-2.0
"""BalancedClustering in standard operators.

All groups of a level are split at once. Tokens are not normalised: their cosine is a product with
the centroid over their length, and the length is looked up once. Sharing between two centroids by
softmax is a sigmoid of the difference.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph import Builder, attribute, size
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
        self.dtype = np.float64 if q.dtype == ir.DataType.DOUBLE else np.float32

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
                rows = self._op("Unsqueeze", [sorting, self._ints("axis", -1)])
                tokens, lengths = (self._op("GatherND", [each, rows], batch_dims=3) for each in (tokens, lengths))
        return self._op("Reshape", [order, self._ints("shape", 0, self.heads, self.tokens)])

    def _image_order(self) -> ir.Value:
        """0 .. N - 1 for every head of the batch."""
        batch = self._op("Shape", [self.q], start=0, end=1)
        shape = self._op("Concat", [batch, self._ints("shape", self.heads, self.tokens)], axis=0)
        return self._op("Expand", [self.build.constant("arange", np.arange(self.tokens)), shape])

    def _grouped(self, x: ir.Value, level: int, last: int) -> ir.Value:
        groups = 2**level
        return self._op("Reshape", [x, self._ints("shape", 0, self.heads, groups, self.tokens // groups, last)])

    def _sorting(self, tokens: ir.Value, lengths: ir.Value, level: int) -> ir.Value:
        """(B, H, groups, n) int64: how each group's tokens are to be arranged."""
        groups, n = 2**level, self.tokens >> level
        halves = self._op("Reshape", [tokens, self._ints("shape", 0, self.heads, 2 * groups, n // 2, self.dim)])
        means = self._op("ReduceMean", [halves, self._ints("axes", 3)], keepdims=0)
        centroids = self._normalised(
            self._op("Reshape", [means, self._ints("shape", 0, self.heads, groups, 2, self.dim)])
        )
        turned = self._op("Transpose", [tokens], perm=(0, 1, 2, 4, 3))
        signs = self._floats("sharpness", [[SHARPNESS], [-SHARPNESS]])
        lengths = self._op("Transpose", [lengths], perm=(0, 1, 2, 4, 3))
        for _ in range(ROUNDS):
            first, second = self._halves(self._cosines(centroids, turned, lengths))
            shares = self._op("Sigmoid", [self._op("Mul", [self._op("Sub", [first, second]), signs])])
            centroids = self._normalised(self._op("MatMul", [shares, tokens]))
        one = self._floats("one", 1.0)
        first, second = self._halves(self._op("Add", [self._cosines(centroids, turned, lengths), one]))
        ratio = self._op("Div", [first, self._op("Max", [second, self._floats("least", LEAST)])])
        flat = self._op("Squeeze", [ratio, self._ints("axis", 3)])
        top = self.build.node("TopK", [flat, self._ints("n", n)], {"axis": -1, "largest": 0, "sorted": 1}, outputs=2)
        return top.outputs[1]

    def _cosines(self, centroids: ir.Value, turned: ir.Value, lengths: ir.Value) -> ir.Value:
        """(B, H, groups, 2, n)."""
        return self._op("Div", [self._op("MatMul", [centroids, turned]), lengths])

    def _halves(self, pair: ir.Value) -> tuple[ir.Value, ...]:
        return tuple(self.build.node("Split", [pair], {"axis": 3, "num_outputs": 2}, outputs=2).outputs)

    def _pick(self, order: ir.Value, sorting: ir.Value, level: int) -> ir.Value:
        grouped = self._op("Reshape", [order, self._ints("shape", 0, self.heads, 2**level, self.tokens >> level)])
        return self._op("GatherElements", [grouped, sorting], axis=3)

    def _length(self, x: ir.Value) -> ir.Value:
        norm = self._op("ReduceL2", [x, self._ints("axes", -1)], keepdims=1)
        return self._op("Max", [norm, self._floats("tiny", TINY)])

    def _normalised(self, x: ir.Value) -> ir.Value:
        return self._op("Div", [x, self._length(x)])

    def _op(self, op_type: str, inputs: list[ir.Value | None], **attributes: object) -> ir.Value:
        return self.build.value(op_type, inputs, attributes=attributes)

    def _ints(self, name: str, *numbers: int) -> ir.Value:
        return self.build.constant(name, np.array(numbers, np.int64))

    def _floats(self, name: str, numbers: object) -> ir.Value:
        return self.build.constant(name, np.array(numbers, self.dtype))

# SPDX-License-Identifier: Apache-2.0
"""ClusterAttention in standard operators: whole rows are gathered into clusters, and back by the inverse order.

A pair of clusters is a run of 2 * cluster_size rows, of which each half sees a window, so that no
key is copied for the overlap. (One masked product for the pair is 1.07 to 1.19 times slower, measured.)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph import Builder, attribute, float_type, size
from .op import OP_TYPE


def expand(node: ir.Node) -> ir.Value:
    """The node's output (B, H, N, d)."""
    q, k, v, order = node.inputs
    if q is None or k is None or v is None or order is None:
        raise ValueError(f"{node.name} lacks an input")
    cluster, overlap = int(attribute(node, "cluster_size")), int(attribute(node, "overlap"))
    return _Attention(Builder(node, mixer_op=OP_TYPE), q, cluster, overlap, attribute(node, "scale")).run(k, v, order)


class _Attention:
    """Writes the nodes of one attention."""

    def __init__(self, build: Builder, q: ir.Value, cluster: int, overlap: int, scale: float) -> None:
        self.build, self.q, self.cluster, self.overlap, self.scale = build, q, cluster, overlap, scale
        self.heads, self.tokens, self.dim = (size(q, axis) for axis in (1, 2, 3))
        self.dtype = float_type(q)

    def run(self, k: ir.Value, v: ir.Value, order: ir.Value) -> ir.Value:
        scale = self.build.constant("scale", np.array(self.scale, self.dtype))
        q = self.build.op("Mul", [self.q, scale])
        if self.tokens == self.cluster:
            # One cluster that sees all of itself: attention does not depend on the order.
            return self._attend(q, k, v, turned=(0, 1, 3, 2))
        rows = self.build.op("Unsqueeze", [order, self.build.ints("axis", -1)])
        pairs = self.tokens // (2 * self.cluster)
        shape = self.build.ints("shape", 0, self.heads, pairs, 2 * self.cluster, self.dim)
        q, k, v = (
            self.build.op("Reshape", [self.build.op("GatherND", [each, rows], batch_dims=2), shape])
            for each in (q, k, v)
        )
        size, reach = self.cluster, self.cluster + self.overlap
        first = self._attend(self._rows(q, 0, size), self._rows(k, 0, reach), self._rows(v, 0, reach))
        start, stop = 2 * size - reach, 2 * size
        second = self._attend(self._rows(q, size, stop), self._rows(k, start, stop), self._rows(v, start, stop))
        joined = self.build.op("Concat", [first, second], axis=3)
        flat = self.build.op("Reshape", [joined, self.build.ints("shape", 0, self.heads, self.tokens, self.dim)])
        return self.build.op("GatherND", [flat, self._inverse(order)], batch_dims=2)

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, turned: tuple[int, ...] = (0, 1, 2, 4, 3)) -> ir.Value:
        logits = self.build.op("MatMul", [q, self.build.op("Transpose", [k], perm=turned)])
        return self.build.op("MatMul", [self.build.op("Softmax", [logits], axis=-1), v])

    def _rows(self, x: ir.Value, start: int, stop: int) -> ir.Value:
        return self.build.op("Slice", [x, *(self.build.ints("bounds", n) for n in (start, stop, 3))])

    def _inverse(self, order: ir.Value) -> ir.Value:
        """(B, H, N, 1): where in the clusters each token of the image is."""
        positions = self.build.constant("arange", np.arange(self.tokens).reshape(1, 1, -1))
        positions = self.build.op("Expand", [positions, self.build.op("Shape", [order])])
        inverse = self.build.op("ScatterElements", [order, order, positions], axis=2)
        return self.build.op("Unsqueeze", [inverse, self.build.ints("axis", -1)])

# SPDX-License-Identifier: Apache-2.0
"""Clustering models decide by sorting: read the decisions of eager and of a graph, and run a graph with given ones.

A rounding error that swaps two tokens near the middle of a sort moves both into another cluster, and
the outputs by far more than the rounding. So decisions and arithmetic are judged apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from ..export.graph import RESULT_OF, Builder, module_of
from ..export.ops.balanced_clustering.op import OP_TYPE
from ..export.serialize import readable
from ..models.mixers.feature_space_attention import CLUSTER, OVERLAP, BalancedClustering
from . import eager
from .onnxruntime import open_session
from .session import OpenSession, Session

Outputs = list[NDArray[np.float32]]
Orders = dict[str, NDArray[np.int64]]
"""For each clustering, by the path of its module: (B, heads, N), the tokens in order of clusters."""


@dataclass(frozen=True)
class Clusterings:
    """The clusterings of one exported graph; `graph` makes it, so that only one is in memory, and `load` runs it, as
    many batches `at_once` as it can.
    """

    graph: Callable[[], ir.Model]
    threads: int
    load: OpenSession = open_session
    at_once: int = 1

    def open(self) -> tuple[Session, tuple[str, ...]]:
        """The graph with its decisions laid open, and the modules that make them.

        Each is a further input, named after its module: the order to go on with, or `undecided`, which leaves
        it to the graph. The orders that the graph itself makes, each after those before it, are further outputs.
        """
        model = self.graph().clone()
        modules = lay_open(model)
        with readable(model) as file:
            return self.load(file, threads=self.threads, at_once=self.at_once), modules


def lay_open(model: ir.Model) -> tuple[str, ...]:
    """Give a graph, in place, an input for each of its decisions, as `Clusterings.open` says; the modules' names."""
    made = decisions(model.graph)
    for module, value in made.items():
        given = ir.val(module, ir.DataType.INT64, value.shape)
        model.graph.inputs.append(given)
        readers = [use.node for use in value.uses()]
        build = Builder(next(node for node in model.graph if node in readers))
        missing = build.value("Less", [given, build.constant(f"{module}.none", np.array(0))])
        taken = build.value("Where", [missing, value, given], like=value)
        for node in readers:
            for i, source in enumerate(node.inputs):
                if source is value:
                    node.replace_input_with(i, taken)
        model.graph.outputs.append(value)
    return tuple(made)


def undecided(orders: Orders) -> Orders:
    """What leaves every decision to the graph."""
    return {module: np.full_like(order, -1) for module, order in orders.items()}


def decisions(graph: ir.Graph) -> dict[str, ir.Value]:
    """The order that each clustering of a graph makes and something reads, by the path of its module."""
    made = {}
    for node in graph:
        if OP_TYPE in (node.op_type, node.metadata_props.get(RESULT_OF)) and node.outputs[0].uses():
            made[module_of(node)] = node.outputs[0]
    return made


@dataclass(frozen=True)
class EagerDecisions:
    """Eager PyTorch with its decisions, image by image; what was computed once is remembered."""

    model: nn.Module
    _seen: dict[bytes, tuple[Outputs, Orders]] = field(default_factory=dict)

    def __call__(self, batch: NDArray[np.floating]) -> tuple[Outputs, Orders]:
        """Outputs and decisions for a batch (B, C, H, W)."""
        each = [self._of(batch[i : i + 1]) for i in range(len(batch))]
        outputs = [np.concatenate(parts) for parts in zip(*(outputs for outputs, _ in each), strict=True)]
        orders = {name: np.concatenate([found[name] for _, found in each]) for name in each[0][1]}
        return outputs, orders

    def _of(self, image: NDArray[np.floating]) -> tuple[Outputs, Orders]:
        key = hashlib.sha256(image.tobytes()).digest()
        if key not in self._seen:
            self._seen[key] = self._run(image)
        return self._seen[key]

    def outputs(self, batch: NDArray[np.floating]) -> Outputs:
        """Outputs alone."""
        return self(batch)[0]

    def _run(self, batch: NDArray[np.floating]) -> tuple[Outputs, Orders]:
        orders: Orders = {}

        def listen(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
            return lambda module, inputs, order: orders.update({name: order.numpy()})

        hooks = [
            module.register_forward_hook(listen(name))
            for name, module in self.model.named_modules()
            if isinstance(module, BalancedClustering)
        ]
        try:
            return eager.run(self.model, batch), orders
        finally:
            for hook in hooks:
                hook.remove()


def agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of tokens that two orders (B, heads, N) put into the same cluster, for each image: (B,)."""
    first, second = (np.argsort(order, -1) // CLUSTER for order in (one, other))
    shares: NDArray[np.float64] = (first == second).mean((1, 2))
    return shares


def lent_agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the tokens that clusters lend to the other of their pair in the first order, the share that the
    same clusters lend in the second, for each image: (B,). It depends on the order inside the clusters.
    """
    first, second = (_lent(order) for order in (one, other))
    shares: NDArray[np.float64] = ((first == second) & (first >= 0)).sum((1, 2)) / (first >= 0).sum((1, 2))
    return shares


def _lent(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B, heads, N): the cluster that lends each token, -1 where none does."""
    position = np.argsort(order, -1)
    cluster, place = np.divmod(position, CLUSTER)
    lent = np.where(cluster % 2 == 0, place >= CLUSTER - OVERLAP, place < OVERLAP)
    return np.where(lent, cluster, -1)

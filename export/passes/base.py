# SPDX-License-Identifier: Apache-2.0
"""What a pass is: a frozen value with options, a rewrite, and a promise about the graph it leaves."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass

import onnx_ir as ir

from ...artifacts import PassRecord
from ...errors import LoweringError
from ..graph import module_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a whole graph: requires -> rewrite -> ensures."""

    def requires(self, graph: ir.Graph) -> str | None:
        """What is missing for this pass to be correct, or None if it can run."""
        del graph
        return None

    @abstractmethod
    def rewrite(self, model: ir.Model) -> int:
        """Rewrite in place; returns the number of places changed."""

    def ensures(self, graph: ir.Graph) -> str | None:
        """How the graph breaks what the pass promises, or None if it holds."""
        del graph
        return None


def run_pass(each: Pass, model: ir.Model) -> PassRecord:
    """Run one pass between its checks; LoweringError if a check fails."""
    name = type(each).__name__
    if (missing := each.requires(model.graph)) is not None:
        raise LoweringError(f"{name} cannot run: {missing}")
    rewrites = each.rewrite(model)
    if (broken := each.ensures(model.graph)) is not None:
        raise LoweringError(f"{name} did not keep its promise: {broken}")
    _log.debug("%s: %d rewrites, %d nodes", name, rewrites, model.graph.num_nodes())
    return PassRecord(name, rewrites, model.graph.num_nodes())


def no_match(reason: str, node: ir.Node) -> None:
    """Say at debug level why a rewrite leaves a node alone."""
    _log.debug("%s/%s (%s): left alone, %s", module_of(node), node.op_type, node.name, reason)

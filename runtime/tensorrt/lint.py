# SPDX-License-Identifier: Apache-2.0
"""Known issues of TensorRT that a graph has, told before minutes are spent on an engine."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ...export.graph import module_of
from .known_issues import KNOWN_ISSUES, Batch, KnownIssue, Severity, Version

_ORDER: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """A known issue at one node.

    Attributes:
        issue: its key in KNOWN_ISSUES.
        module: the PyTorch module that the node comes from; "" for the root.
        message: one line: the node, what goes wrong, what to do, and where it is documented.
    """

    issue: str
    severity: Severity
    node: str
    module: str
    message: str


def lint(model: ir.Model, version: Version, *, batch: Batch) -> tuple[Finding, ...]:
    """What is known to go wrong when that version of TensorRT builds an engine from the graph, or runs it.

    Args:
        model: in its final precision, with types and shapes; nothing of it is changed.
        version: of TensorRT, for instance (11, 2, 1).
        batch: the smallest, usual and largest batch that the engine is for.

    Returns:
        Errors first, then warnings, then what is only to be noted; each in the order of the graph.
    """
    present = [issue for issue in KNOWN_ISSUES if issue.affects(version, batch)]
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    findings = [_finding(issue, node) for node in nodes for issue in present if issue.concerns(node)]
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity)))


def _finding(issue: KnownIssue, node: ir.Node) -> Finding:
    module = module_of(node)
    message = f"{node.op_type} of {module or 'the model'} {issue.title}. {issue.remedy} ({issue.link})"
    return Finding(issue.key, issue.severity, str(node.name), module, message)

# SPDX-License-Identifier: Apache-2.0
"""The float32 graph that a delivered file was made from, traced and lowered once more.

Every value of the file then has a float32 one of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from torch import nn

from .artifacts import Lowered, LoweringForm
from .calibrating import CALIBRATION
from .calibration.equalize import equalized
from .calibration.table import read_calibration
from .checking import Delivered
from .errors import InputError
from .export.lower import lower_all
from .export.ops.mixer_op import DOMAIN
from .export.serialize import let_go
from .export.trace import trace
from .output import MANIFEST
from .progress import Progress
from .report import versions


def lowered_again(module: nn.Module, delivered: Delivered, graph: ir.Graph, progress: Progress) -> Lowered:
    """The form of a delivered graph in float32, its channels equalised where the file's are.

    Args:
        module: the model that was exported.
        graph: the delivered one.

    Raises:
        InputError: the manifest does not say how the file was made, or its calibration.json is gone or of another
            graph.
    """
    how: Mapping[str, Any] | None = delivered.manifest["graphs"].get(delivered.source.name)
    if how is None:
        raise InputError(f"{delivered.path.parent / MANIFEST} does not say how {delivered.source.name} was made.")
    with progress.stage("trace") as done:
        traced = trace(module, delivered.spec, how["opset"])
        done(f"{traced.model.graph.num_nodes()} nodes, opset {traced.opset}")
    with progress.stage("lower") as done:
        (lowered,) = lower_all(traced, (how["form"],), _lowering(traced.model.graph, graph))
        let_go(traced.model)
        done(f"{lowered.model.graph.num_nodes()} nodes {lowered.form}")
    return _equalized(lowered, delivered) if delivered.precision == "int8" else lowered


def common_nodes(lowered: Lowered, graph: ir.Graph, delivered: Delivered, progress: Progress) -> set[str]:
    """Names of the nodes of a lowered graph that the delivered one has, too; a note if any are missing there.

    Raises:
        InputError: all are missing, or an output of the model is.
    """
    made = lowered.model.graph
    nodes = {(node.name, node.op_type) for node in graph}
    values = {value.name for node in graph for value in node.outputs}
    missing = {
        str(node.name): None
        for node in made
        if (node.name, node.op_type) not in nodes
        or any(each.uses() and each.name not in values for each in node.outputs)
    }
    if len(missing) == made.num_nodes() or any(output.name not in values for output in made.outputs):
        raise InputError(
            f"{delivered.source} is not of the graph that this version makes of {delivered.spec.name}: "
            f"{_versions(delivered)}. Export it again to compare layers."
        )
    if missing:
        progress.note(
            f"{len(missing)} of the {made.num_nodes()} nodes that this version makes are not in "
            f"{delivered.source.name}, first {next(iter(missing))}. They are left out, and what is said of the others "
            f"may be wrong: {_versions(delivered)}."
        )
    return {str(node.name) for node in made} - missing.keys()


def _lowering(traced: ir.Graph, delivered: ir.Graph) -> dict[str, LoweringForm]:
    """How each mixer op reached the file: as itself, as DFT nodes, or in other standard operators."""
    left = {node.op_type for node in delivered if node.domain == DOMAIN}
    native = any(node.op_type == "DFT" for node in delivered)
    chosen: dict[str, LoweringForm] = {}
    for node in traced:
        if node.domain == DOMAIN:
            written: LoweringForm = "native" if native and node.op_type == "GlobalFilter" else "portable"
            chosen[node.op_type] = "plugin" if node.op_type in left else written
    return chosen


def _equalized(lowered: Lowered, delivered: Delivered) -> Lowered:
    path = delivered.path.with_name(CALIBRATION)
    calibration = read_calibration(path)
    try:
        return equalized(lowered, calibration.equalized) if calibration.equalized else lowered
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is of another graph than this version makes: {_versions(delivered)}.") from error


def _versions(delivered: Delivered) -> str:
    """What the file was made with, and what is here."""
    made, here = (
        ", ".join(f"{name} {each.get(name)}" for name in ("metaformer-export", "torch", "onnx-ir"))
        for each in (delivered.manifest["versions"], versions())
    )
    return f"it was made with {made}; here are {here}"

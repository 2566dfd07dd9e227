# SPDX-License-Identifier: Apache-2.0
"""How each mixer op of a graph reaches TensorRT: as a plugin, in standard operators, or in operators it has itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import onnx_ir as ir

from ...artifacts import LoweringForm
from ...errors import InputError
from ..graph import attribute
from .catalog import OPS, find
from .mixer_op import DOMAIN

FORMS: tuple[LoweringForm, ...] = get_args(LoweringForm)
NATIVE = ("GlobalFilter",)
"""Ops that ONNX has an operator for, DFT, which TensorRT runs from 11.2 on."""


def parse_lowering(text: str) -> tuple[str, LoweringForm]:
    """An op and its form, from "GlobalFilter=portable"; InputError for one that there is not."""
    name, equals, asked = text.partition("=")
    form = next((each for each in FORMS if each == asked), None)
    if not equals or find(name) is None or form is None:
        raise InputError(
            f"--lowering takes OP=FORM, OP one of {', '.join(op.op_type for op in OPS)} and FORM {', '.join(FORMS)}; "
            f"got {text!r}."
        )
    if form == "native" and name not in NATIVE:
        raise InputError(f"--lowering {name}=native: only {', '.join(NATIVE)} has operators of its own; use portable.")
    return name, form


def choose(
    graph: ir.Graph, asked: Mapping[str, LoweringForm], *, plugins: bool = True
) -> tuple[dict[str, LoweringForm], list[str]]:
    """The form of every kind of mixer op in a traced graph, and notes on those that cannot have theirs.

    Args:
        asked: forms by op; the others are plugins where their kernel can run at their sizes.
        plugins: False leaves no op a plugin unless it is asked to be one.

    Raises:
        InputError: an op that the graph does not have is asked for, or one is to be a plugin and its kernel cannot
            run at its sizes.
    """
    refusals: dict[str, str] = {}
    for node in graph:
        if node.domain == DOMAIN and not refusals.get(node.op_type):
            refusals[node.op_type] = refusal(node)
    for name, form in asked.items():
        if name not in refusals:
            there = f"only {', '.join(refusals)}" if refusals else "nor any other"
            raise InputError(f"--lowering {name}={form}: the model has no {name}, {there}; leave it out.")
    chosen: dict[str, LoweringForm] = {}
    notes = []
    for name, reason in refusals.items():
        form = asked.get(name) or ("plugin" if plugins and not reason else "portable")
        if form == "plugin" and reason:
            raise InputError(f"--lowering {name}=plugin cannot be: {reason}; use {name}=portable.")
        if reason and plugins and name not in asked:
            notes.append(f"{name} goes to TensorRT in standard operators: {reason}.")
        chosen[name] = form
    return chosen, notes


def refusal(node: ir.Node) -> str:
    """Why a mixer op's kernel cannot run at the sizes of a node; "" if it can, or there is none to ask: such a node
    runs by its function body.
    """
    op = find(node.op_type)
    if op is None or op.kernel is None:
        return ""
    sizes = [
        tuple(size if isinstance(size, int) else -1 for size in value.shape or ())
        for value in node.inputs
        if value is not None
    ]
    attributes = {name: attribute(node, name) for name in op.kernel.attributes}
    return op.kernel.refusal(dict(zip(op.kernel.inputs, sizes, strict=True)), attributes)

# SPDX-License-Identifier: Apache-2.0
"""PyTorch module -> ONNX, with each mixer op as one node of the metaformer domain."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.values import TracedOnnxFunction
from torch import nn

from ..artifacts import ModelSpec, Traced
from ..errors import InputError
from . import repeats
from .collector import paused
from .graph import SCOPES, module_of
from .simplify import simplify, simplify_shapes
from .stand_in import BATCH, example, is_computed_with, replace_by_batch
from .translations import TRANSLATIONS

OPSETS = range(18, 24)
DEFAULT_OPSET = 20
BFLOAT16_OPSET = 22
"""From here on every operator that the families use allows bfloat16 (Conv does not before)."""
INT8_OPSET = 19
"""From here on scales may be float16."""
INPUT = "input"


def trace(model: nn.Module, spec: ModelSpec, opset: int = DEFAULT_OPSET) -> Traced:
    """Trace a module in eval mode at the spec's image size, with a dynamic batch.

    Args:
        model: float32, eval mode; (B, in_chans, H, W) -> a tensor or a tuple of tensors.
        spec: names the outputs and the image size (H, W).
        opset: 18 to 23.

    Raises:
        InputError: the opset is not one that torch's exporter writes and the passes know.
    """
    if opset not in OPSETS:
        raise InputError(f"opset {opset} is not supported; use {OPSETS.start} to {OPSETS[-1]}.")
    if model.training:
        raise ValueError("trace needs a module in eval mode")
    with _quiet_exporter(), paused(), torch.no_grad():
        traced = _translated(model, spec, opset, example(spec.in_chans, spec.image_size), None)
        if is_computed_with(traced.graph):
            # Two images: a batch of one would be baked into the graph.
            images = torch.zeros(2, spec.in_chans, *spec.image_size)
            traced = _translated(model, spec, opset, images, ({0: torch.export.Dim(BATCH)},))
        replace_by_batch(traced.graph)
        simplify_shapes(traced)  # before blocks are copied
        repeats.write_out(traced.graph, model)
        simplify(traced)
    traced.graph.name = spec.name
    _scope_orphans(traced.graph)
    return Traced(spec, traced, opset)


def _translated(
    model: nn.Module, spec: ModelSpec, opset: int, images: torch.Tensor, dynamic_shapes: tuple[Any, ...] | None
) -> ir.Model:
    """As torch's exporter writes it, with one block of each kind."""
    with repeats.marked(model):
        captured = torch.export.export(model, (images,), dynamic_shapes=dynamic_shapes, strict=False)
    with _library_unparsed():
        program = torch.onnx.export(
            _decomposed_if_needed(captured),
            dynamo=True,
            dynamic_shapes=dynamic_shapes,  # for the name of the axis
            custom_translation_table=dict(TRANSLATIONS),
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(spec.outputs),
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return program.model


def _decomposed_if_needed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with a `run_decompositions` that does nothing where there is nothing to decompose.

    The exporter always calls it, and it traces the whole model twice more: half of the time that tracing takes.
    """
    decompose = program.run_decompositions

    def run_decompositions(table: Mapping[Any, Any] | None = None) -> torch.export.ExportedProgram:
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        return decompose(table) if any(_needs_decomposition(call, table or {}) for call in calls) else program

    program.run_decompositions = run_decompositions
    return program


def _needs_decomposition(call: torch.fx.Node, table: Mapping[Any, Any]) -> bool:
    """Whether the exporter cannot translate a call as it is.

    It puts into its table what it has no translation for. Its translation of a chunk is wrong where fewer parts
    than asked for, or only one, come out; and what changes its input has to be made functional.
    """
    if isinstance(call.target, torch._ops.HigherOrderOperator):
        return True
    if not isinstance(call.target, torch._ops.OpOverload):
        return False  # taking an element, or arithmetic with sizes
    if call.target is torch.ops.aten.chunk.default and ((made := len(call.meta["val"])) == 1 or made != call.args[1]):
        return True
    return call.target in table or bool(call.target._schema.is_mutable)


@contextmanager
def _library_unparsed() -> Iterator[None]:
    """Inside, a translation of the exporter's library says its domain without a look at its source.

    The exporter asks each of its hundreds of translations for that, and each finds and parses its own source to
    answer: a second of every export. It is the domain of the opset that it was registered with.
    """
    kind: Any = TracedOnnxFunction
    parsed = kind.function_ir
    kind.function_ir = property(lambda self: SimpleNamespace(domain=self.opset.domain))
    try:
        yield
    finally:
        kind.function_ir = parsed


def _scope_orphans(graph: ir.Graph) -> None:
    """Give nodes that the exporter leaves without a module path (Split) the module of their neighbours."""
    for node in graph:
        if SCOPES in node.metadata_props:
            continue
        sources = [value.producer() for value in node.inputs if value is not None]
        readers = [use.node for output in node.outputs for use in output.uses()]
        paths = [module_of(each).split(".") for each in (*sources, *readers) if each is not None and module_of(each)]
        common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
        scopes = [".".join(common[:i]) for i in range(len(common) + 1)]
        node.metadata_props[SCOPES] = repr([*scopes, str(node.name)])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's notes about packages and APIs that no user of this tool can act on off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)

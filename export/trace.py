# SPDX-License-Identifier: Apache-2.0
"""PyTorch module -> ONNX, with each mixer op as one node of the metaformer domain."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

import onnx_ir as ir
import torch
from torch import nn

from ..artifacts import ModelSpec, Traced
from ..errors import InputError
from .graph import SCOPES, module_of

OPSETS = range(18, 24)
DEFAULT_OPSET = 20
BFLOAT16_OPSET = 22
"""From here on every operator that the families use allows bfloat16 (Conv does not before)."""
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
    # Two images: a batch of one would be baked into the graph.
    example = torch.zeros(2, spec.in_chans, *spec.image_size)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=list(spec.outputs),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    traced: ir.Model = program.model
    traced.graph.name = spec.name
    _scope_orphans(traced.graph)
    return Traced(spec, traced, opset)


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

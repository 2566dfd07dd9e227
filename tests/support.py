# SPDX-License-Identifier: Apache-2.0
"""What several tests need: golden weights, small models, and graphs run before and after a rewrite."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from metaformer_export.artifacts import ModelSpec
from metaformer_export.errors import MissingDependencyError
from metaformer_export.export.graph import module_of
from metaformer_export.export.ops.mixer_op import DOMAIN, MixerOp
from metaformer_export.export.passes.base import Pass, run_pass
from metaformer_export.export.serialize import serialize
from metaformer_export.models import hornet, registry
from metaformer_export.models.family import Family, Preprocessing, Variant
from metaformer_export.runtime import openvino
from metaformer_export.runtime.onnxruntime import open_session

GOLDEN = Path(__file__).parent / "golden"


def _has_bfloat16() -> bool:
    try:
        openvino.check("bf16")
    except MissingDependencyError:
        return False
    return True


needs_bfloat16 = pytest.mark.skipif(not _has_bfloat16(), reason="this CPU has no bfloat16")


def _golden_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", GOLDEN / "golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden"] = module
    spec.loader.exec_module(module)
    return module


golden = _golden_module()

SMALL = hornet.HorNetConfig(16, depths=(1, 1, 1, 1))
SMALL_GF = replace(SMALL, filters=(None, None, (14, 8), (7, 4)))


def small_variant(name: str, config: hornet.HorNetConfig) -> Variant:
    """A HorNet that traces in seconds."""
    ops = ("GlobalFilter",) if any(config.filters) else ()
    return Variant(name, name, config, parameters=0, mixer_ops=ops)


def small_family() -> Family:
    """HorNet with two small variants in front: hornet_test and hornet_test_gf."""
    variants = (small_variant("hornet_test", SMALL), small_variant("hornet_test_gf", SMALL_GF))
    return replace(hornet.FAMILY, variants=(*variants, *hornet.FAMILY.variants))


def install_small_family() -> None:
    """Make the small variants known in this process for good; a test uses the fixture small_models."""
    registry.FAMILIES = (small_family(),)


def golden_state_dict(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The golden weights of a model under the names of its golden file."""
    data = golden.load(GOLDEN / f"{name}.npz")
    filled = golden.fill_state_dict(data["keys"], data["shapes"])
    return {str(key): torch.from_numpy(array).to(dtype) for key, array in filled.items()}


def golden_shapes(data: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a golden file's tensors."""
    return {str(key): tuple(json.loads(str(shape))) for key, shape in zip(data["keys"], data["shapes"], strict=True)}


def fill_golden(module: nn.Module) -> nn.Module:
    """Fill any module as the goldens are filled: weights that make every branch matter."""
    state = module.state_dict()
    module.load_state_dict({k: torch.from_numpy(np.asarray(golden.fill(k, tuple(t.shape)))) for k, t in state.items()})
    return module.eval().requires_grad_(False)


def spec_for(name: str, size: tuple[int, int] = (224, 224), outputs: tuple[str, ...] = ("logits",)) -> ModelSpec:
    """A spec for a module that a test made itself."""
    return ModelSpec(
        name=name,
        short_name=name,
        family="hornet",
        image_size=size,
        in_chans=3,
        num_classes=1000,
        features=len(outputs) > 1,
        parameters=0,
        weights="golden",
        checkpoint_sha256=None,
        preprocessing=Preprocessing(),
        outputs=outputs,
    )


def run_model(model: ir.Model, batch: np.ndarray) -> list[np.ndarray]:
    """Run a graph in ONNX Runtime on the CPU."""
    return open_session(serialize(model), threads=2)(batch)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference over the spread of what is wanted."""
    return float(np.abs(np.asarray(got, np.float64) - want).max() / np.asarray(want, np.float64).std())


def image(*shape: int) -> np.ndarray:
    """The goldens' random image, float32."""
    return golden.image(shape).astype(np.float32)


def mixer_model(
    op: MixerOp,
    inputs: Sequence[np.ndarray],
    attributes: Mapping[str, object],
    output: np.ndarray,
    opset: int = 20,
) -> ir.Model:
    """A graph of one mixer op with a dynamic batch; inputs and output give the types and shapes."""
    values = [ir.val(f"input{i}", _type(x), ["batch", *x.shape[1:]]) for i, x in enumerate(inputs)]
    node = ir.node(op.op_type, values, attributes, domain=DOMAIN, name="mixer")
    y = node.outputs[0]
    y.name, y.type, y.shape = "output", ir.TensorType(_type(output)), ir.Shape(["batch", *output.shape[1:]])
    graph = ir.Graph(values, [y], nodes=[node], opset_imports={"": opset, DOMAIN: 1}, name="mixer")
    return ir.Model(graph, ir_version=10)


def run_feeds(model: ir.Model, *feeds: np.ndarray) -> np.ndarray:
    """The only output of a graph of any input types, in ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    (output,) = session.run(None, dict(zip(names, feeds, strict=True)))
    return np.asarray(output)


def run_form(
    form: Pass, op: MixerOp, inputs: Sequence[np.ndarray], attributes: Mapping[str, object], output: np.ndarray
) -> np.ndarray:
    """One mixer op in the form that a pass gives it, run in ONNX Runtime."""
    model = mixer_model(op, inputs, attributes, output)
    assert run_pass(form, model).rewrites == 1
    return run_feeds(model, *inputs)


def _type(array: np.ndarray) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)


def files_below(folder: Path) -> list[str]:
    """All files and folders in a folder, by path."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def canonical(graph: ir.Graph) -> list[Hashable]:
    """All nodes in order; values by who makes them, weights by content: what is left of a graph without names.

    What is made of constants alone is a constant, however many nodes make it.
    """
    names: dict[ir.Value | None, Hashable] = {value: value.name for value in graph.inputs}
    constants: set[ir.Value | None] = {None}
    for value in graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        names[value] = (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest())
        constants.add(value)
    nodes: list[Hashable] = []
    for node in graph:
        attributes = tuple(sorted((key, repr(each.value)) for key, each in node.attributes.items()))
        inputs = tuple(None if value is None else names[value] for value in node.inputs)
        shapes = tuple(str(value.shape) for value in node.outputs)
        made: Hashable = (node.domain, node.op_type, attributes, inputs, shapes)
        if constants.issuperset(node.inputs):
            constants |= set(node.outputs)
        else:
            nodes.append((made, module_of(node)))
            made = len(nodes)
        names |= {value: (made, n) for n, value in enumerate(node.outputs)}
    return [*nodes, tuple(names[value] for value in graph.outputs)]

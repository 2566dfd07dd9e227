# SPDX-License-Identifier: Apache-2.0
"""One-sided inputs of the classifier, shifted for signed bytes: the same function, in half the steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import support

from metaformer_export.artifacts import Lowered
from metaformer_export.calibration import quantize as quantizing
from metaformer_export.calibration.placement import KINDS, PLACEMENTS
from metaformer_export.calibration.quantize import quantize
from metaformer_export.export.graph import constant, producer
from metaformer_export.export.serialize import serialize
from metaformer_export.runtime.onnxruntime import open_session

_LOW, _HIGH = -0.3, 9.0
_LAYERS = ("Gemm", "Gemm of transposed weights")
_OTHERS = ("Gemm without bias", "MatMul", "MatMul and Add", "Conv", "Conv and bias")


def graph_of(layer: str, *, second: bool = False) -> ir.Model:
    """relu(x) - 0.3 -> the layer, and perhaps one more that reads the same."""
    rng = np.random.default_rng(1)
    kind = layer.split()[0]
    shape = ["batch", 24, 6, 6] if kind == "Conv" else ["batch", 24]
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape(shape))
    weights = {"Conv": (10, 24, 1, 1), "Gemm": (24, 10), "MatMul": (24, 10)}
    made: dict[str, np.ndarray] = {
        "low": np.array(_LOW, np.float32),
        "weight": rng.standard_normal(weights[kind]).astype(np.float32),
        "bias": rng.standard_normal(10).astype(np.float32),
    }
    if layer == "Gemm of transposed weights":
        made["weight"] = np.ascontiguousarray(made["weight"].T)
    constants = {name: ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in made.items()}
    for value in constants.values():
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), value.const_value.shape  # type: ignore[union-attr]
    nodes = [ir.node("Relu", [x], name="relu")]
    nodes.append(ir.node("Add", [nodes[-1].outputs[0], constants["low"]], name="one_sided"))
    source = nodes[-1].outputs[0]
    biased = layer in ("Gemm", "Gemm of transposed weights", "Conv and bias")
    attributes = {"transB": 1} if layer == "Gemm of transposed weights" else {}
    inputs = [source, constants["weight"], *([constants["bias"]] if biased else [])]
    nodes.append(ir.node(kind, inputs, attributes, name="layer"))
    if layer == "MatMul and Add":
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], constants["bias"]], name="biased"))
    outputs = [nodes[-1].outputs[0]]
    if second:
        nodes.append(ir.node(kind, inputs, attributes, name="other"))
        outputs.append(nodes[-1].outputs[0])
    for value, name in zip((nodes[0].outputs[0], source, *outputs), ("r", "s", "y", "z"), strict=False):
        value.name = name
    for value in outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=list(constants.values()), opset_imports={"": 20})
    return ir.from_proto(ir.to_proto(ir.Model(graph, ir_version=10)))


def quantised(model: ir.Model, monkeypatch: pytest.MonkeyPatch, *, shifted: bool) -> ir.Model:
    """For TensorRT, with the inputs of every kind of layer shifted, or of none."""
    placement = replace(PLACEMENTS["tensorrt"], centred=frozenset(KINDS if shifted else ()))
    monkeypatch.setattr(quantizing, "PLACEMENTS", {**PLACEMENTS, "tensorrt": placement})
    lowered = Lowered(support.spec_for("made", (6, 6)), model, "portable", ())
    return quantize(lowered, {"s": (_LOW, _HIGH)}, "tensorrt").model


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    """As the file says, in float between its pairs."""
    return open_session(serialize(model), threads=1, literal=True)(x)


@pytest.fixture
def images() -> np.ndarray:
    x = np.random.default_rng(0).uniform(-6, 6, (64, 24)).astype(np.float32)
    x[:, 0] = 9.3
    return x


@pytest.mark.parametrize("layer", _LAYERS)
def test_the_same_function_in_half_the_steps(layer: str, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph_of(layer)
    (want,) = run(model, images)
    errors, steps = {}, {}
    for shifted in (False, True):
        made = quantised(model, monkeypatch, shifted=shifted)
        (got,) = run(made, images)
        errors[shifted] = float(np.sqrt(np.mean((got - want) ** 2)) / want.std())
        multiplied = next(node for node in made.graph if node.name == "layer")
        pair = producer(multiplied.inputs[0], "DequantizeLinear")
        assert pair is not None
        steps[shifted] = float(np.asarray(constant(pair.inputs[1])))
        assert sum(node.op_type == "Sub" for node in made.graph) == shifted
        assert not np.any(constant(pair.inputs[2]))
    assert steps[True] / steps[False] == pytest.approx((_HIGH - _LOW) / 2 / _HIGH, rel=2e-3)
    assert errors[True] < 0.02
    assert errors[True] < 0.9 * errors[False], "what is left is of the weights"


def test_zero_stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most frequent value there: what lies at zero gives the bias, but for float16's rounding."""
    model = graph_of("Gemm")
    bias = np.asarray(constant(model.graph.initializers["bias"]))
    x = np.full((1, 24), -_LOW, np.float32)
    (got,) = run(quantised(model, monkeypatch, shifted=True), x)
    assert np.abs(got[0] - bias).max() <= 4e-3 * np.abs(bias).max() + 0.02


def test_layers_of_one_input_share_the_shift(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph_of("Gemm", second=True)
    made = quantised(model, monkeypatch, shifted=True)
    assert sum(node.op_type == "Sub" for node in made.graph) == 1
    for got, want in zip(run(made, images), run(model, images), strict=True):
        assert np.sqrt(np.mean((got - want) ** 2)) / want.std() < 0.02


@pytest.mark.parametrize("layer", _OTHERS)
def test_other_layers_stay_as_they_are(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = quantised(graph_of(layer), monkeypatch, shifted=True)
    assert sum(node.op_type == "Sub" for node in made.graph) == 0


def test_only_the_classifier_is_shifted_by_default() -> None:
    assert {target: placement.centred for target, placement in PLACEMENTS.items() if placement.centred} == {
        "tensorrt": frozenset({"head"})
    }

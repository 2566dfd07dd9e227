# SPDX-License-Identifier: Apache-2.0
"""A model too large for one protobuf is written beside its weights, and runs the same."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import support
from small_models import small

from metaformer_export.artifacts import Traced
from metaformer_export.cli import main
from metaformer_export.errors import LoweringError
from metaformer_export.export.lower import check, lower
from metaformer_export.export.precision import convert
from metaformer_export.export.serialize import apart, serialize, skeleton
from metaformer_export.runtime.engine import load_engine
from metaformer_export.runtime.onnxruntime import open_session

X = support.image(2, 3, 224, 224)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_outside_the_graph_give_the_same_numbers(
    traced_small_gf: Traced, precision: str, tmp_path: Path
) -> None:
    model = convert(lower(traced_small_gf, "portable"), precision).model  # type: ignore[arg-type]
    inside, outside = serialize(model), serialize(model, largest=0)
    assert inside.weights == {}
    assert len(outside.graph) < len(inside.graph) / 4
    (want,) = open_session(inside, threads=2)(X)
    assert np.array_equal(open_session(outside, threads=2)(X)[0], want)
    outside.write(tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert np.array_equal(load_engine(tmp_path)(X)[0], want)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


@pytest.mark.parametrize("form", ["portable", "openvino", "plugin"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_left_where_they_are_make_the_same_file(
    traced_small_gf: Traced, precision: str, form: str, tmp_path: Path
) -> None:
    model = convert(lower(traced_small_gf, form), precision).model  # type: ignore[arg-type]
    inside, views = serialize(model), apart(model)
    assert len(views.graph) < len(inside.graph) / 4
    views.write(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == inside.graph
    if precision != "bf16":
        assert np.array_equal(open_session(views, threads=2)(X)[0], open_session(inside, threads=2)(X)[0])


def test_the_weights_of_a_model_are_not_copied(traced_small_gf: Traced) -> None:
    model = lower(traced_small_gf, "portable").model
    weights = apart(model).weights
    assert len(weights) > 20
    for name, array in weights.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        assert np.shares_memory(array, tensor.numpy())


def test_a_model_that_nobody_else_looks_at_is_left_as_it_was(traced_small_gf: Traced) -> None:
    model = lower(traced_small_gf, "portable").model
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    copied, alone = apart(model), apart(model, undisturbed=True)
    assert alone.graph == copied.graph
    assert alone.weights.keys() == copied.weights.keys()
    assert all(np.array_equal(alone.weights[name], array) for name, array in copied.weights.items())
    assert all(model.graph.initializers[name].const_value is tensor for name, tensor in before.items())


def test_several_threads_may_take_one_model_apart(traced_small_gf: Traced) -> None:
    model = lower(traced_small_gf, "portable").model
    want = apart(model).graph
    with ThreadPoolExecutor(4) as pool:
        assert all(file.graph == want for file in pool.map(lambda _: apart(model), range(16)))


def test_weights_begin_on_pages(traced_small_gf: Traced, tmp_path: Path) -> None:
    model = lower(traced_small_gf, "portable").model
    serialize(model, "model.onnx", largest=0).write(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    entries = [{e.key: e.value for e in tensor.external_data} for tensor in graph.initializer if tensor.external_data]
    assert len(entries) > 20
    assert all(int(entry["offset"]) % 4096 == 0 for entry in entries)
    assert {entry["location"] for entry in entries} == {"model.onnx.data"}


def test_the_skeleton_is_checked_without_the_weights(traced_small_gf: Traced) -> None:
    model = lower(traced_small_gf, "portable").model
    proto = skeleton(apart(model))
    assert proto.ByteSize() < sum(tensor.const_value.nbytes for tensor in model.graph.initializers.values()) / 4
    check(proto)
    next(node for node in proto.graph.node if node.op_type == "Conv").op_type = "MatMul"
    with pytest.raises(LoweringError, match="not valid ONNX"):
        check(proto)
    session = onnxruntime.InferenceSession(serialize(model).graph, providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": X})[0].shape == (2, 1000)


@pytest.mark.parametrize("kind", ["focalnet_huge", "boat_swin", "acmix_resnet"])
def test_transposed_weights_of_linear_layers_go_outside_too(kind: str, tmp_path: Path) -> None:
    """torch leaves them as views; ONNX Runtime takes only memory that is in order."""
    lowered = lower(small(kind).traced, "portable")
    model, sides = lowered.model, lowered.spec.image_size
    outside = serialize(model, largest=0)
    x = support.image(1, 3, *sides)
    (want,) = open_session(serialize(model), threads=2)(x)
    assert np.array_equal(open_session(outside, threads=2)(x)[0], want)
    outside.write(tmp_path / "model.onnx")
    assert np.array_equal(load_engine(tmp_path)(x)[0], want)
    apart(model).write(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == serialize(model).graph


def test_the_whole_command_writes_weights_beside_the_graph(
    monkeypatch: pytest.MonkeyPatch, small_models: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(apart, "__defaults__", ("model.onnx", 0))
    arguments = ["--model", "hornet_test_gf", "--fp16", "--output", str(tmp_path / "out")]
    for _ in range(2):  # the second replaces the first
        assert main(arguments) == 0
    names = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {"model.onnx.data", "model.plugin.onnx.data"} <= set(names)
    written = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))["outputs"]
    assert {name: written[name]["bytes"] for name in names if name != "manifest.json"} == {
        name: size for name, size in names.items() if name != "manifest.json"
    }
    size = (names["model.onnx"] + names["model.onnx.data"]) / 1e6
    assert f"model.onnx {size:.1f} MB" in capsys.readouterr().out
    assert load_engine(tmp_path / "out")(X)[0].shape == (2, 1000)

# SPDX-License-Identifier: Apache-2.0
"""A model too large for one protobuf is written beside its weights, and runs the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import support

from metaformer_export.artifacts import Traced
from metaformer_export.errors import LoweringError
from metaformer_export.export.lower import check, lower
from metaformer_export.export.precision import convert
from metaformer_export.export.serialize import serialize, skeleton
from metaformer_export.runtime.onnxruntime import load_engine, open_session

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
    proto = skeleton(model)
    assert proto.ByteSize() < sum(tensor.const_value.nbytes for tensor in model.graph.initializers.values()) / 4
    check(proto)
    next(node for node in proto.graph.node if node.op_type == "Conv").op_type = "MatMul"
    with pytest.raises(LoweringError, match="not valid ONNX"):
        check(proto)
    session = onnxruntime.InferenceSession(serialize(model).graph, providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": X})[0].shape == (2, 1000)

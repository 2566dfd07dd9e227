# SPDX-License-Identifier: Apache-2.0
"""OpenVINO computes what eager computes, in the types that a file is written in."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import support
import torch
from torch import nn

from metaformer_export.artifacts import Lowered, Traced
from metaformer_export.calibration.images import load_images
from metaformer_export.errors import InputError, MissingDependencyError
from metaformer_export.export.lower import lower
from metaformer_export.export.precision import convert
from metaformer_export.export.serialize import LARGEST, apart, serialize
from metaformer_export.proving import judge_of, made_by
from metaformer_export.runtime import openvino
from metaformer_export.runtime.clustering import Clusterings, EagerDecisions
from metaformer_export.runtime.openvino import Session, open_session
from metaformer_export.runtime.parity import THRESHOLDS

X = support.image(3, 3, 224, 224)


@pytest.fixture(scope="module")
def lowered(traced_small_7x7: Traced) -> Lowered:
    return lower(traced_small_7x7, "portable")


@pytest.fixture(scope="module")
def boat(traced_small_boat: Traced) -> Lowered:
    return lower(traced_small_boat, "portable")


@pytest.fixture(scope="module")
def logits(small_7x7: nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return small_7x7(torch.from_numpy(X)).numpy()


def test_a_file_of_float32_computes_what_eager_computes_in_float32(lowered: Lowered, logits: np.ndarray) -> None:
    session = open_session(serialize(lowered.model), threads=2)
    assert set(session.executed) == {"f32"}
    assert session.executed["f32"] >= 30
    (got,) = session(X)
    assert got.dtype == np.float32
    assert support.relative_error(got, logits) <= 1e-4
    (alone,) = session(X[1:2])
    assert support.relative_error(alone, logits[1:2]) <= 1e-4


@pytest.mark.parametrize(("batch", "calls"), [(1, 3), (2, 2), (4, 1)])
def test_a_batch_that_is_known_is_compiled_in_and_other_calls_are_cut_and_filled_up(
    lowered: Lowered, logits: np.ndarray, monkeypatch: pytest.MonkeyPatch, batch: int, calls: int
) -> None:
    session = open_session(serialize(lowered.model), threads=2, batch=batch)
    assert session.batch == batch
    (images,) = session.compiled.inputs
    assert list(images.get_shape()) == [batch, 3, 224, 224]
    ran: list[int] = []
    run = Session._run

    def counted(self: Session, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        ran.append(len(feeds[self.input_name]))
        return run(self, feeds)

    monkeypatch.setattr(Session, "_run", counted)
    (got,) = session(X)
    assert ran == [batch] * calls
    assert got.shape == logits.shape
    assert support.relative_error(got, logits) <= 1e-4
    with pytest.raises(InputError, match="without images"):
        session(X[:0])


def test_weights_outside_the_graph_are_found_in_memory_and_in_files(
    lowered: Lowered, logits: np.ndarray, tmp_path: Path
) -> None:
    for largest, names in ((0, {"other.onnx", "other.onnx.data"}), (LARGEST, {"other.onnx"})):
        file = apart(lowered.model, "other.onnx", largest)
        assert file.weights
        (folder := tmp_path / str(largest)).mkdir()
        file.write(folder / "other.onnx")
        assert {path.name for path in folder.iterdir()} == names
        for model in (file, folder / "other.onnx"):
            (got,) = open_session(model, threads=2)(X)
            assert support.relative_error(got, logits) <= 1e-4


@support.needs_bfloat16
@pytest.mark.parametrize("written", ["bf16", "fp32"])
def test_bfloat16_is_really_run_in_bfloat16(lowered: Lowered, logits: np.ndarray, written: str) -> None:
    """A bfloat16 file as it is written, and a float32 file that OpenVINO lowers."""
    file = serialize(convert(lowered, written).model)  # type: ignore[arg-type]
    session = open_session(file, threads=2, hint="f32" if written == "bf16" else "bf16")
    assert session.executed.get("bf16", 0) >= 30
    assert "f32" not in session.executed
    error = support.relative_error(session(X)[0], logits)
    exact = support.relative_error(open_session(serialize(lowered.model), threads=2)(X)[0], logits)
    assert 100 * exact < error <= THRESHOLDS["bf16"].max_rel


def _sorts(session: Session) -> Counter[str]:
    """Types of the sorts of a compiled model."""
    infos = [layer.get_rt_info() for layer in session.compiled.get_runtime_model().get_ops()]
    return Counter(info["runtimePrecision"].astype(str) for info in infos if info["layerType"].astype(str) == "TopK")


@support.needs_bfloat16
def test_a_bfloat16_file_keeps_its_clusterings_in_float32_and_a_hint_would_not(
    boat: Lowered, small_boat: nn.Module
) -> None:
    model = convert(boat, "bf16").model
    session = open_session(serialize(model), threads=2)
    assert _sorts(session) == {"f32": 6 + 4 + 2}
    assert session.executed["bf16"] > session.executed["f32"] > 0
    assert _sorts(open_session(serialize(boat.model), threads=2, hint="bf16")) == {"bf16": 6 + 4 + 2}

    images = load_images(None, boat.spec)
    images = replace(images, batch=images.batch[:2], names=images.names[:2], sha256=images.sha256[:2])
    judge = judge_of(small_boat, boat, images)
    written = replace(made_by(lambda: model), load=open_session)
    hinted = replace(made_by(lambda: boat.model), load=partial(open_session, hint="bf16"))
    proof = judge.compare({"as written": written}, "bf16")
    lowered = judge.compare({"lowered": hinted}, "bf16")
    assert proof.passed, proof.failures
    assert proof.cluster_agreement is not None
    assert lowered.cluster_agreement is not None
    for kept, lost in zip(proof.cluster_agreement.nodes, lowered.cluster_agreement.nodes, strict=True):
        assert kept.alone > lost.alone, kept.module
        assert kept.lent > lost.lent, kept.module


@pytest.mark.parametrize("batch", [None, 2])
def test_clusterings_can_be_given(boat: Lowered, small_boat: nn.Module, batch: int | None) -> None:
    want, orders = EagerDecisions(small_boat)(X)
    session, _ = Clusterings(lambda: boat.model, 2, partial(open_session, batch=batch)).open()
    output, *own = session(X, orders)
    assert support.relative_error(output, want[0]) <= 1e-4
    assert [order.shape for order in own] == [order.shape for order in orders.values()]
    other = {node: np.random.default_rng(0).permuted(order, axis=-1) for node, order in orders.items()}
    assert support.relative_error(session(X, other)[0], want[0]) > 0.01


def test_float16_is_refused_rather_than_run_in_float32(lowered: Lowered) -> None:
    with pytest.raises(InputError, match="holds float16"):
        open_session(serialize(convert(lowered, "fp16").model), threads=2)
    with pytest.raises(InputError, match="does not compute in fp16"):
        openvino.check("fp16")


def test_what_it_cannot_run_is_one_line(traced_small_gf: Traced, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    session = open_session(serialize(lower(traced_small_gf, "portable").model), threads=2)
    for run in (
        lambda: open_session(tmp_path / "text.onnx", threads=2),
        lambda: open_session(tmp_path / "nowhere.onnx", threads=2),
        lambda: session(X[:, :, :32]),
    ):
        with pytest.raises(InputError, match=r"^OpenVINO ") as caught:
            run()
        assert "\n" not in str(caught.value)


def test_without_openvino_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, lowered: Lowered) -> None:
    openvino._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "metaformer-export\[openvino\]"'):
        openvino.check("fp32")
    with pytest.raises(MissingDependencyError, match=r'pip install "metaformer-export\[openvino\]"'):
        open_session(serialize(lowered.model), threads=2)

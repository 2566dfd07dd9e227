# SPDX-License-Identifier: Apache-2.0
"""Weights that are read from files: the same numbers, and out of memory when they are not needed."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import support
import torch
from torch import nn

from metaformer_export.artifacts import Traced
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import LARGEST, apart, left_on_disk, let_go, readable
from metaformer_export.export.trace import trace
from metaformer_export.runtime import eager
from metaformer_export.runtime.memory import trim
from metaformer_export.runtime.onnxruntime import open_session

X = support.image(2, 3, 224, 224)


def _resident(name: str) -> int:
    """Kilobytes in memory of mapped files whose name ends so."""
    total, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            mapped = line.removesuffix(" (deleted)").endswith(name)
        elif mapped and first == "Rss:":
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_eager_reads_its_weights_from_a_file_without_a_name(small_7x7: nn.Module, tmp_path: Path) -> None:
    model = copy.deepcopy(small_7x7)
    size = sum(each.nbytes for each in (*model.parameters(), *model.buffers())) // 1024
    (want,) = eager.run(model, X)
    eager.leave_weights_in(model, tmp_path / "eager.data")
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(eager.run(model, X)[0], want)
    assert _resident("eager.data") >= size
    trim()
    assert _resident("eager.data") == 0
    assert np.array_equal(eager.run(model, X)[0], want)
    for name, value in small_7x7.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_written_model_reads_its_weights_from_the_file(traced_small_7x7: Traced, tmp_path: Path) -> None:
    model = lower(traced_small_7x7, "portable").model
    other = model.clone()
    (want,) = open_session(apart(model), threads=2)(X)
    path = tmp_path / "model.onnx"
    apart(model, largest=0).write(path)
    left_on_disk((model, other), path)
    for each in (model, other):
        large = [value.const_value for value in each.graph.initializers.values() if value.const_value.nbytes > 1024]
        assert len(large) > 20
        assert all(isinstance(tensor, ir.ExternalTensor) for tensor in large)
        assert np.array_equal(open_session(apart(each), threads=2)(X)[0], want)


def test_a_file_with_its_weights_inside_leaves_them_in_memory(traced_small_7x7: Traced, tmp_path: Path) -> None:
    model = lower(traced_small_7x7, "portable").model
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    apart(model).write(tmp_path / "model.onnx")
    left_on_disk((model,), tmp_path / "model.onnx")
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())


def test_a_model_that_nobody_needs_lets_go_of_its_weights(traced_small_7x7: Traced) -> None:
    model = lower(traced_small_7x7, "portable").model
    weights = [weakref.ref(value.const_value) for value in model.graph.initializers.values()]
    let_go(model)
    gc.collect()
    kept = sum(weight() is not None for weight in weights)
    assert kept < len(weights) / 2, "but for what the traced model still has"


@pytest.mark.parametrize("largest", [0, LARGEST])
def test_a_graph_is_read_beside_weights_that_lie_on_disk(
    traced_small_7x7: Traced, tmp_path: Path, largest: int
) -> None:
    model = lower(traced_small_7x7, "portable").model
    (want,) = open_session(apart(model), threads=2)(X)
    path = tmp_path / "model.onnx"
    apart(model, largest=largest).write(path)
    left_on_disk((model,), path)
    written = sorted(tmp_path.iterdir())
    with readable(model.clone()) as file:
        assert isinstance(file, Path) == (largest == 0)
        if isinstance(file, Path):
            assert file.parent == tmp_path
            assert file.stat().st_size < path.stat().st_size + 4096, "no weights in it"
        session = open_session(file, threads=2)
    assert sorted(tmp_path.iterdir()) == written
    assert np.array_equal(session(X)[0], want)


def test_weights_that_lowering_replaced_are_not_kept(small_boat: nn.Module) -> None:
    """Shape inference, which clustering models go through, has the list of inputs remember all weights of that time."""
    traced = trace(small_boat, support.spec_for("boat_test"))
    lowered = lower(traced, "portable")
    taken = {id(value.const_value) for value in lowered.model.graph.initializers.values()}
    replaced = [
        weakref.ref(value.const_value)
        for value in traced.model.graph.initializers.values()
        if value.const_value.nbytes > 1024 and id(value.const_value) not in taken
    ]
    assert len(replaced) > 10
    let_go(traced.model)
    gc.collect()
    assert sum(weight() is not None for weight in replaced) == 0

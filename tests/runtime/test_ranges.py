# SPDX-License-Identifier: Apache-2.0
"""Extremes and histograms of a graph's tensors, against the tensors themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from metaformer_export.artifacts import Traced
from metaformer_export.calibration.thresholds import BINS
from metaformer_export.errors import ImageError
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import taken_apart
from metaformer_export.runtime import ranges
from metaformer_export.runtime.onnxruntime import open_session
from metaformer_export.runtime.ranges import Extremes, binned, extremes, histograms

IMAGES = np.random.RandomState(0).standard_normal((7, 3, 224, 224)).astype(np.float32)


def batches() -> list[np.ndarray]:
    return [IMAGES[:3], IMAGES[3:6], IMAGES[6:]]


@pytest.fixture(scope="module")
def model(traced_small_gf: Traced) -> ir.Model:
    return lower(traced_small_gf, "portable").model


@pytest.fixture(scope="module")
def names(model: ir.Model) -> list[str]:
    """The input, and what the layers with weights take."""
    found = [node.inputs[0] for node in model.graph if node.op_type in ("Conv", "MatMul", "Gemm")]
    return list(dict.fromkeys(str(value.name) for value in found if value is not None))


@pytest.fixture(scope="module")
def tensors(model: ir.Model, names: list[str]) -> dict[str, np.ndarray]:
    """All of them at once, as they come out of the graph."""
    copy = model.clone()
    values = {str(value.name): value for node in copy.graph for value in node.outputs}
    made = [name for name in names if name in values]
    copy.graph.outputs[:] = [values[name] for name in made]
    session = open_session(taken_apart(copy), threads=2, fuse=False)
    return dict(zip(made, session(IMAGES), strict=True)) | {"input": IMAGES}


def test_extremes_are_those_of_the_tensors(model: ir.Model, names: list[str], tensors: dict[str, np.ndarray]) -> None:
    told: list[int] = []
    found = extremes(model, names, batches, threads=2, told=told.append)
    assert told == [3, 3, 1]
    assert list(found) == names
    assert len(names) > 20
    assert "input" in found
    for name, seen in found.items():
        want = tensors[name]
        spread = float(want.std())
        assert seen.low == pytest.approx(float(want.min()), abs=1e-4 * spread)
        assert seen.high == pytest.approx(float(want.max()), abs=1e-4 * spread)


@pytest.mark.parametrize("budget", [1, 2**28], ids=["one image at a time", "whole batches"])
def test_histograms_count_every_value_in_its_place(
    model: ir.Model, names: list[str], tensors: dict[str, np.ndarray], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_COUNTED", 2**20)
    seen = extremes(model, names, batches, threads=2)
    found = histograms(model, seen, batches, threads=2, budget=budget)
    assert list(found) == names
    for name, histogram in found.items():
        want = np.histogram(tensors[name], BINS, (histogram.low, histogram.high))[0]
        assert histogram.counts.sum() == tensors[name].size
        moved = np.abs(histogram.counts.cumsum() - want.cumsum()).max()  # across the edge of a bin, by rounding
        assert moved < 1e-3 * tensors[name].size


def test_of_a_large_tensor_some_values_are_counted_from_everywhere(
    model: ir.Model, names: list[str], tensors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_COUNTED", 2**12)
    seen = extremes(model, names, batches, threads=2)
    found = histograms(model, seen, batches, threads=2)
    for name, histogram in found.items():
        counts, size = histogram.counts, tensors[name].size
        assert min(size, 7 * 2**10) <= counts.sum() <= 7 * 2**12
        want = np.histogram(tensors[name], BINS, (histogram.low, histogram.high))[0]
        assert np.abs(counts.cumsum() / counts.sum() - want.cumsum() / size).max() < 0.03


def test_a_tensor_of_one_value_has_one_bin() -> None:
    counts = binned(np.full((2, 3), 5.0, np.float32), Extremes(5.0, 5.0))
    assert (counts.sum(), counts[0], len(counts)) == (6, 6, BINS)


def test_values_outside_count_at_the_ends() -> None:
    counts = binned(np.array([-9, -1, 0, 1, 9], np.float32), Extremes(-1.0, 1.0))
    assert (counts[0], counts[BINS // 2], counts[-1]) == (2, 1, 2)


def test_images_that_overflow_are_refused_by_name_of_the_tensor(model: ir.Model, names: list[str]) -> None:
    with pytest.raises(ImageError, match="is not finite for these images"):
        extremes(model, names, lambda: [np.full_like(IMAGES[:1], np.inf)], threads=2)

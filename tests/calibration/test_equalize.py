# SPDX-License-Identifier: Apache-2.0
"""Equalisation: the float graph computes the same bits, and eight bits lose less."""

from __future__ import annotations

import numpy as np
import pytest
import support
import torch
from small_models import small
from torch import nn

from metaformer_export.artifacts import Lowered
from metaformer_export.calibration.equalize import Place, Samples, equalized, exponents_for, places
from metaformer_export.calibration.quantize import observed, quantize
from metaformer_export.calibration.thresholds import RANGES
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import serialize
from metaformer_export.export.trace import trace
from metaformer_export.runtime.channels import channel_samples
from metaformer_export.runtime.onnxruntime import open_session
from metaformer_export.runtime.ranges import extremes


class Uneven(nn.Module):
    """Three ways to make a tensor of uneven channels that a linear layer reads: norm, convolution and gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8)
        self.first, self.second = nn.Linear(8, 16), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate, self.other = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        x = self.second(self.first(x).permute(0, 3, 1, 2))
        x = nn.functional.gelu(x)
        out: torch.Tensor = self.last(self.gate(x) * self.other(x)).mean((2, 3))
        return out


@pytest.fixture(scope="module")
def uneven() -> tuple[Lowered, np.ndarray]:
    model = support.fill_golden(Uneven())
    with torch.no_grad():
        model.norm.weight[3] *= 40
        model.first.weight[:, 3] /= 40
        model.first.weight[5] *= 30
        model.second.weight[5] /= 30
        model.gate.weight[2] *= 50
        model.last.weight[:, 2] /= 50
    x = support.image(4, 3, 24, 32)
    return lower(trace(model, support.spec_for("uneven", (24, 32))), "portable"), x


def exponents(lowered: Lowered, x: np.ndarray) -> dict[str, tuple[int, ...]]:
    samples = channel_samples(lowered.model, [x], 2)
    found = {
        place.name: exponents_for(place, samples[place.name], RANGES["mse"]) for place in places(lowered.model.graph)
    }
    return {name: powers for name, powers in found.items() if powers is not None}


def error(lowered: Lowered, x: np.ndarray, want: np.ndarray, target: str = "tensorrt") -> float:
    seen = extremes(lowered.model, observed(lowered), lambda: [x], threads=2)
    ranges = {name: (each.low, each.high) for name, each in seen.items()}
    graph = quantize(lowered, ranges, target).model
    (got,) = open_session(serialize(graph), threads=2, literal=True)(x)
    return float(np.sqrt(((got - want) ** 2).mean()) / want.std())


def test_norms_convolutions_and_gates_take_factors(uneven: tuple[Lowered, np.ndarray]) -> None:
    lowered, x = uneven
    found = {place.source.op_type + place.tensor.producer().op_type: place for place in places(lowered.model.graph)}
    assert {"LayerNormalizationLayerNormalization", "ConvConv", "ConvMul"} <= set(found)
    powers = exponents(lowered, x)
    of_channels = [powers[found[kind].name] for kind in ("LayerNormalizationLayerNormalization", "ConvConv", "ConvMul")]
    assert [int(np.argmax(each)) for each in of_channels] == [3, 5, 2]


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_eight_bits_lose_less_and_the_float_graph_computes_the_same_bits(
    uneven: tuple[Lowered, np.ndarray], target: str
) -> None:
    lowered, x = uneven
    equal = equalized(lowered, exponents(lowered, x))
    (want,), (same,) = support.run_model(lowered.model, x), support.run_model(equal.model, x)
    np.testing.assert_array_equal(same, want)
    plain, better = error(lowered, x, want, target), error(equal, x, want, target)
    assert 0 < better < 0.5 * plain


@pytest.mark.parametrize(
    "kind", ["convformer", "caformer", "hornet", "focalnet", "boat_swin", "acmix_swin", "acmix_resnet"]
)
def test_any_exponents_leave_the_float_graph_of_a_family_as_it_is(kind: str) -> None:
    lowered = lower(small(kind).traced, "portable")
    random = np.random.default_rng(0)
    found = list(places(lowered.model.graph))
    powers = {place.name: random.integers(-3, 4, channels(place)).tolist() for place in found}
    assert len(found) >= 3
    x = support.image(1, 3, *lowered.spec.image_size)
    (want,) = support.run_model(lowered.model, x)
    (got,) = support.run_model(equalized(lowered, powers).model, x)
    assert support.relative_error(got, want) < 1e-5  # runtimes fuse and add in another order
    changed = {name: [power + (i == 0) for i, power in enumerate(each)] for name, each in powers.items()}
    broken = equalized(lowered, changed)
    for place in places(broken.model.graph):
        assert place.name in powers


def channels(place: Place) -> int:
    return int(place.tensor.shape[place.axis])


def test_a_tensor_without_uneven_channels_is_left_alone(uneven: tuple[Lowered, np.ndarray]) -> None:
    lowered, _ = uneven
    (place,) = [place for place in places(lowered.model.graph) if place.source.op_type == "LayerNormalization"]
    rows = np.random.default_rng(0).normal(size=(256, channels(place))).astype(np.float32)
    weight = place.readers[0].inputs[1]
    weight.const_value = support.ir.tensor(np.sign(weight.const_value.numpy()).astype(np.float32))
    assert exponents_for(place, Samples(rows), RANGES["minmax"]) is None

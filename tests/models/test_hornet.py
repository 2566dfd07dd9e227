# SPDX-License-Identifier: Apache-2.0
"""HorNet against what the authors' code computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import support
import torch

from metaformer_export import create_model
from metaformer_export.models import registry
from metaformer_export.models.family import BuildOptions
from metaformer_export.models.loading import build

FILES = sorted(support.GOLDEN.glob("hornet_*.npz"), key=lambda path: path.stat().st_size)


def _name(path: Path) -> tuple[str, bool]:
    name = path.stem.split("@")[0]
    return name.removesuffix("_features"), name.endswith("_features")


def _errors(outputs: torch.Tensor | tuple[torch.Tensor, ...], data: dict[str, np.ndarray]) -> float:
    """Largest error over the golden's spread, over all outputs."""
    if "logits" in data:
        assert isinstance(outputs, torch.Tensor)
        assert tuple(outputs.shape) == data["logits"].shape
        return support.relative_error(outputs.numpy(), data["logits"])
    errors = []
    for i, output in enumerate(outputs):
        assert tuple(output.shape) == tuple(data[f"shape{i}"])
        picked = output.numpy().reshape(-1)[data[f"index{i}"]]
        errors.append(np.abs(picked - data[f"value{i}"]).max() / data[f"moment{i}"][1])
    assert len(errors) == 4
    return float(max(errors))


def test_every_hornet_golden_is_here() -> None:
    assert len(FILES) == 11


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees_with_the_authors_in_float64_and_float32(path: Path) -> None:
    name, features = _name(path)
    data = support.golden.load(path)
    model = create_model(name, features=features)
    assert list(model.state_dict()) == [str(key) for key in data["keys"]]
    model.load_state_dict(support.golden_state_dict(path.stem, torch.float64), strict=True)
    x = torch.from_numpy(support.golden.image(data["input_shape"]))
    with torch.inference_mode():
        assert _errors(model.double()(x), data) <= 1e-5
        assert _errors(model.float()(x.float()), data) <= 20 * float(data["fp32_rel"])


@pytest.mark.parametrize(("family", "variant"), registry.variants(), ids=lambda each: each.name)
def test_the_listed_number_of_parameters_is_true(family, variant) -> None:
    module = build(family, variant, BuildOptions(), device="meta")
    assert sum(parameter.numel() for parameter in module.parameters()) == variant.parameters


def test_a_filter_is_resized_at_a_size_it_was_not_trained_at() -> None:
    model = create_model("hornet_t_gf", image_size=(64, 96))
    with torch.inference_mode():
        logits = model(torch.from_numpy(support.image(2, 3, 64, 96)))
    assert logits.shape == (2, 1000)
    assert float(logits.std()) > 0.1

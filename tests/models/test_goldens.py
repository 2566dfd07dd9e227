# SPDX-License-Identifier: Apache-2.0
"""Every family against what its authors' code computes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import support
import torch
from _pytest.mark import ParameterSet

from metaformer_export import create_model
from metaformer_export.models import registry
from metaformer_export.models.building import build
from metaformer_export.models.family import BuildOptions

FILES = sorted(support.GOLDEN.glob("*.npz"), key=lambda path: path.stat().st_size)
FP32_DECIDES_UP_TO = 1e-4
"""Where the authors' own float32 departs further from their float64, a sort fell the other way."""


LARGE = 35_000_000
"""Parameters from which on a model is left to `make test-all`."""


def _case(path: Path) -> ParameterSet:
    shapes = [json.loads(str(shape)) for shape in support.golden.load(path)["shapes"]]
    parameters = sum(math.prod(shape) for shape in shapes)
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (parameters > LARGE))


def _request(path: Path) -> tuple[str, dict[str, object]]:
    """Arguments of create_model for a golden file's name."""
    name = path.stem.split("@")[0]
    for neck in ("horfpn_7x7", "horfpn_gf"):
        if name.endswith(f"_{neck}"):
            return name.removesuffix(f"_{neck}"), {"features": True, "neck": neck}
    if name.endswith("_features"):
        return name.removesuffix("_features"), {"features": True}
    return name, {}


def _errors(outputs: torch.Tensor | tuple[torch.Tensor, ...], data: dict[str, np.ndarray]) -> float:
    """Largest error over the golden's spread, over all outputs."""
    if "logits" in data:
        assert isinstance(outputs, torch.Tensor)
        assert tuple(outputs.shape) == data["logits"].shape
        return support.relative_error(outputs.numpy(), data["logits"])
    levels = sum(key.startswith("shape") and key[5:].isdigit() for key in data)
    assert len(outputs) == levels >= 4
    errors = []
    for i, output in enumerate(outputs):
        assert tuple(output.shape) == tuple(data[f"shape{i}"])
        picked = output.numpy().reshape(-1)[data[f"index{i}"]]
        errors.append(np.abs(picked - data[f"value{i}"]).max() / data[f"moment{i}"][1])
    return float(max(errors))


def test_every_golden_is_here() -> None:
    assert len(FILES) == 42


@pytest.mark.parametrize("path", [_case(path) for path in FILES])
def test_agrees_with_the_authors_in_float64_and_float32(path: Path) -> None:
    name, keywords = _request(path)
    data = support.golden.load(path)
    model = create_model(name, **keywords)  # type: ignore[arg-type]
    assert list(model.state_dict()) == [str(key) for key in data["keys"]]
    model.load_state_dict(support.golden_state_dict(path.stem, torch.float64), strict=True)
    x = torch.from_numpy(support.golden.image(data["input_shape"]))
    with torch.inference_mode():
        assert _errors(model.double()(x), data) <= 1e-5
        if (fp32_rel := float(data["fp32_rel"])) <= FP32_DECIDES_UP_TO:
            assert _errors(model.float()(x.float()), data) <= 20 * fp32_rel


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

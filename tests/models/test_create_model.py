# SPDX-License-Identifier: Apache-2.0
"""create_model: names, sizes, classes, and weights that keep every branch alive."""

from __future__ import annotations

import pytest
import support
import torch

from metaformer_export import create_model
from metaformer_export.errors import ImageSizeError, InputError, UnknownModelError
from metaformer_export.models import registry

pytestmark = pytest.mark.usefixtures("small_models")


@pytest.mark.parametrize(("short", "name"), [("hornet_t", "hornet_tiny_7x7"), ("hornet_l_gf", "hornet_large_gf")])
def test_short_names_mean_the_authors_models(short: str, name: str) -> None:
    assert registry.find(short)[1] is registry.find(name)[1]


def test_a_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="hornet_t"):
        create_model("hornett")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (create_model("hornet_test", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["hornet_test", "hornet_test_gf"])
def test_random_weights_keep_every_branch_alive(name: str) -> None:
    """Silencing the mixer of any block moves the logits by far more than any parity threshold."""
    model = create_model(name)
    x = torch.from_numpy(support.image(1, 3, 224, 224))
    with torch.inference_mode():
        reference = model(x)
        for stage in model.stages:
            for block in stage:
                gamma = block.gamma1.clone()
                block.gamma1.zero_()
                assert support.relative_error(model(x).numpy(), reference.numpy()) > 0.05
                block.gamma1.copy_(gamma)
    assert 0.4 < float(model.stages[0][0].gamma2.mean()) < 0.6


def test_classes_channels_and_features_are_built_as_asked() -> None:
    x = torch.from_numpy(support.image(1, 5, 64, 96))
    with torch.inference_mode():
        assert create_model("hornet_test", num_classes=7, in_chans=5, image_size=(64, 96))(x).shape == (1, 7)
        maps = create_model("hornet_test_gf", in_chans=5, features=True)(x)
    assert [tuple(each.shape) for each in maps] == [(1, 16, 16, 24), (1, 32, 8, 12), (1, 64, 4, 6), (1, 128, 2, 3)]


@pytest.mark.parametrize("size", [225, 16, (224, 100), 0, -32])
def test_a_size_that_cannot_be_is_refused_with_one_that_can(size) -> None:
    with pytest.raises(ImageSizeError, match=r"multiples of 32 up to 4096; got .* nearest size that works is \d+x\d+"):
        create_model("hornet_test", image_size=size)


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"in_chans": 0}, {"num_classes": 10**12}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"at least 1 and at most 1000000; got (0|10+)\.$"):
        create_model("hornet_test", **wrong)
    with pytest.raises(InputError, match="has no classes"):
        create_model("hornet_test", num_classes=10, features=True)

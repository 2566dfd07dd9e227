# SPDX-License-Identifier: Apache-2.0
"""PoolFormer, the MetaFormer baselines and FocalNet: small ones of every kind, in ways that the goldens do not show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import support
import torch
from torch import nn

from metaformer_export import create_model
from metaformer_export.errors import ImageSizeError, InputError
from metaformer_export.export.lower import lower
from metaformer_export.export.trace import trace
from metaformer_export.models import focalnet, metaformer_baselines, poolformer, random_weights, registry
from metaformer_export.models.family import BuildOptions, Family

_FOUR = {"depths": (1, 1, 2, 1), "dims": (32, 32, 64, 64)}
_POOL = poolformer.PoolFormerConfig(**_FOUR)
_CONV = metaformer_baselines.BaselineConfig(**_FOUR, mixers=("conv",) * 4, token_norm=True)
_FOCAL = focalnet.FocalNetConfig(16, (1, 1, 2, 1), 2)

KINDS: dict[str, tuple[Family, object]] = {
    "poolformer": (poolformer.FAMILY, _POOL),
    "metaformer_ppaa": (
        poolformer.FAMILY,
        replace(_POOL, mixers=("pool", "pool", "attention", "attention"), channel_norm=True, pos_embed=2),
    ),
    "metaformer_ppff": (poolformer.FAMILY, replace(_POOL, mixers=("pool", "pool", "spatial_fc", "spatial_fc"))),
    "poolformerv2": (metaformer_baselines.FAMILY, replace(_CONV, mixers=("pool",) * 4, token_norm=False)),
    "randformer": (
        metaformer_baselines.FAMILY,
        replace(_CONV, mixers=("identity", "identity", "random", "random"), token_norm=False),
    ),
    "convformer": (metaformer_baselines.FAMILY, _CONV),
    "caformer": (metaformer_baselines.FAMILY, replace(_CONV, mixers=("conv", "conv", "attention", "attention"))),
    "focalnet": (focalnet.FAMILY, _FOCAL),
    "focalnet_huge": (
        focalnet.FAMILY,
        replace(_FOCAL, levels=3, conv_embed=True, layer_scale=True, post_norm=True, norm_in_modulation=True),
    ),
    "focalnet_large_fl4": (
        focalnet.FAMILY,
        replace(_FOCAL, levels=4, conv_embed=True, layer_scale=True, post_norm=True, normalize=True),
    ),
    "focalnet_iso": (focalnet.FAMILY, focalnet.FocalNetConfig(32, (3,), 3, patch=16)),
}
FIXED = ("metaformer_ppaa", "metaformer_ppff", "randformer")
every_kind = pytest.mark.parametrize("kind", KINDS)


def _model(kind: str, features: bool = False) -> nn.Module:
    family, config = KINDS[kind]
    model = family.build(config, BuildOptions(10, features=features))
    random_weights.fill(model, 0)
    return model.eval().requires_grad_(False)


def _images(kind: str, batch: int) -> torch.Tensor:
    sides = (224, 224) if kind in FIXED else (64, 96)
    return torch.from_numpy(support.image(batch, 3, *sides))


@every_kind
def test_random_weights_keep_every_mixer_and_mlp_alive(kind: str) -> None:
    """Silencing any of them moves the logits by far more than any parity threshold."""
    model, x = _model(kind), _images(kind, 2)
    reference = model(x).numpy()
    assert np.isfinite(reference).all()
    assert 0.1 < reference.std() < 10
    branches = [m for name, m in model.named_modules() if name.endswith(("token_mixer", "modulation", "mlp"))]
    assert len(branches) >= 6
    for branch in branches:
        handle = branch.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        assert support.relative_error(model(x).numpy(), reference) > 0.02
        handle.remove()


@every_kind
def test_an_image_does_not_see_the_others_and_float64_stays_float64(kind: str) -> None:
    model, x = _model(kind).double(), _images(kind, 3).double()
    logits = model(x)
    assert logits.dtype == torch.float64
    for i in range(3):
        assert support.relative_error(model(x[i : i + 1]).numpy(), logits[i : i + 1].numpy()) <= 1e-10


@every_kind
def test_the_traced_graph_runs_at_any_batch(kind: str) -> None:
    model = _model(kind)
    x = _images(kind, 3).numpy()
    traced = trace(model, support.spec_for(kind, x.shape[2:]))
    graph = lower(traced, "portable").model
    for batch in (x[:1], x):
        want = model(torch.from_numpy(batch)).numpy()
        assert support.relative_error(support.run_model(graph, batch)[0], want) <= 1e-4


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "focalnet_iso"])
def test_stage_maps_are_channels_first(kind: str) -> None:
    x = _images(kind, 1)
    height, width = x.shape[2:]
    maps = _model(kind, features=True)(x)
    channels = [16, 32, 64, 128] if kind.startswith("focalnet") else [32, 32, 64, 64]
    expected = [(1, c, height >> i, width >> i) for i, c in enumerate(channels, start=2)]
    assert [tuple(each.shape) for each in maps] == expected
    assert all(float(each.std()) > 0.05 for each in maps)


def test_poolformers_stage_norms_are_named_after_their_places() -> None:
    for kind, names in (("poolformer", [0, 2, 4, 6]), ("metaformer_ppaa", [0, 2, 5, 7])):
        model = _model(kind, features=True)
        top = {name.split(".")[0] for name in model.state_dict()}
        assert top == {"patch_embed", "network", *(f"norm{i}" for i in names)}
        normal = model(_images(kind, 1))[3]
        model.get_submodule(f"norm{names[-1]}").weight.mul_(2)
        bias = model.get_submodule(f"norm{names[-1]}").bias[:, None, None]
        assert torch.allclose(model(_images(kind, 1))[3] - bias, 2 * (normal - bias), atol=1e-5)


@pytest.mark.parametrize("name", ["metaformer_pppa_s12_224", "metaformer_ppff_s12_224", "randformer_s12"])
def test_mixers_of_one_size_refuse_others(name: str) -> None:
    with pytest.raises(ImageSizeError, match=rf"{name} works at 224x224 only \(.*one image size\); got 256x256"):
        create_model(name, image_size=256)


def test_the_isotropic_focalnet_takes_sixteenths_and_has_no_stage_maps() -> None:
    with torch.inference_mode():
        logits = create_model("focalnet_t_iso", image_size=(48, 80))(torch.from_numpy(support.image(1, 3, 48, 80)))
    assert logits.shape == (1, 1000)
    assert float(logits.std()) > 0.1
    with pytest.raises(ImageSizeError, match="multiples of 16"):
        create_model("focalnet_t_iso", image_size=40)
    with pytest.raises(InputError, match="focalnet_t_iso has no stage maps"):
        create_model("focalnet_t_iso", features=True)


def test_the_preprocessing_is_the_authors() -> None:
    crops = {variant.name: variant.preprocessing.crop for _, variant in registry.variants()}
    assert [crops[f"poolformer_{size}"] for size in ("s12", "s36", "m36", "m48")] == [0.9, 0.9, 0.95, 0.95]
    assert {crops[name] for name in crops if name.startswith("metaformer_")} == {0.95}
    assert {crops[name] for name in crops if "formerv2_" in name or name.startswith(("conv", "ca", "rand"))} == {1.0}
    assert {crops[name] for name in crops if name.startswith("focalnet")} == {0.875}
    sizes = {variant.name: variant.image_size for _, variant in registry.variants()}
    assert (sizes["caformer_b36"], sizes["caformer_b36_384"]) == (224, 384)

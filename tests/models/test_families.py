# SPDX-License-Identifier: Apache-2.0
"""Small models of every kind, in ways that the goldens do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import support
import torch
from small_models import KINDS, SIDES, small
from torch import nn

from metaformer_export import create_model
from metaformer_export.errors import CheckpointError, ImageSizeError, InputError
from metaformer_export.export.lower import lower
from metaformer_export.export.trace import trace
from metaformer_export.models import (
    acmix_swin,
    random_weights,
    registry,
)
from metaformer_export.models.family import BuildOptions
from metaformer_export.models.swin import SwinConfig
from metaformer_export.runtime.clustering import Clusterings, EagerDecisions, decisions

MIXERS = ("token_mixer", "modulation", "gnconv", "attn", "attnC", "content_attn", "conv2", "mlp", "pwconv2")
every_kind = pytest.mark.parametrize("kind", KINDS)


def _model(kind: str, features: bool = False) -> nn.Module:
    family, config = KINDS[kind]
    model = family.build(config, BuildOptions(10, features=features))
    random_weights.fill(model, 0)
    return model.eval().requires_grad_(False)


def _images(kind: str, batch: int) -> torch.Tensor:
    return torch.from_numpy(support.image(batch, 3, *SIDES.get(kind, (64, 96))))


@every_kind
def test_random_weights_keep_every_mixer_and_mlp_alive(kind: str) -> None:
    """Silencing any of them moves the logits by far more than any parity threshold."""
    model, x = _model(kind), _images(kind, 2)
    reference = model(x).numpy()
    assert np.isfinite(reference).all()
    assert 0.1 < reference.std() < 10
    branches = [m for name, m in model.named_modules() if name.split(".")[-1] in MIXERS]
    assert len(branches) >= 4
    for branch in branches:
        handle = branch.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        assert support.relative_error(model(x).numpy(), reference) > 0.02
        handle.remove()


@every_kind
def test_an_image_does_not_see_the_others_and_float64_stays_float64(kind: str) -> None:
    model, x = _model(kind).double(), _images(kind, 5).double()
    logits = model(x)
    assert logits.dtype == torch.float64
    for start, stop in ((0, 1), (1, 2), (2, 4), (4, 5)):
        assert support.relative_error(model(x[start:stop]).numpy(), logits[start:stop].numpy()) <= 1e-10


@every_kind
def test_the_exported_graph_gives_an_image_the_same_alone_and_in_batches_of_2_and_5(kind: str) -> None:
    model, x = small(kind), _images(kind, 5).numpy()
    graph = lower(model.traced, "portable").model
    (want,), orders = EagerDecisions(model.module)(x)
    # Where rounding decides a clustering, eager's is given: what is left is what a batch could mix up.
    session, _ = Clusterings(lambda: graph, 2).open()
    assert set(decisions(graph.graph)) == {node for node, order in orders.items() if order.shape[-1] > 49}

    def run(start: int, stop: int) -> np.ndarray:
        return session(x[start:stop], {node: orders[node][start:stop] for node in decisions(graph.graph)})[0]

    whole = run(0, 5)
    assert support.relative_error(whole, want) <= 1e-5
    for start, stop in ((0, 1), (1, 2), (2, 4), (4, 5)):
        assert support.relative_error(run(start, stop), whole[start:stop]) <= 1e-5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "focalnet_iso"])
def test_stage_maps_are_channels_first(kind: str) -> None:
    x = _images(kind, 1)
    height, width = x.shape[2:]
    maps = _model(kind, features=True)(x)
    first = 256 if kind == "acmix_resnet" else 16
    channels = [32, 32, 64, 64] if "former" in kind else [first * 2**i for i in range(4)]
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


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("boat_swin_t", 256, r"boat_swin_t works at 224x224 only \(every stage needs 49 \* 2\^k tokens\); got 256x256"),
        ("boat_cswin_l", 448, r"boat_cswin_l works at 224x224 only"),
        ("acmix_swin_t", 256, r"multiples of 224 up to 4032 .*; got 256x256. The nearest size that works is 224x224"),
        ("acmix_r50", 96, r"multiples of 32 from 128 up to 4096 .* nearest size that works is 128x128"),
        ("caformer_s18", 225, r"multiples of 32 up to 4096; got 225x225. The nearest size that works is 224x224"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_one_that_works(name: str, size: int, message: str) -> None:
    with pytest.raises(ImageSizeError, match=message):
        create_model(name, image_size=size)


def test_acmix_swin_shifts_windows_also_where_224_pixels_need_no_shift() -> None:
    """At 448 pixels the last stage has four windows: they are shifted, and every token still counts."""
    model = acmix_swin.build(SwinConfig(16, (1, 1, 1, 2), (1, 2, 4, 8)), BuildOptions(10)).eval().requires_grad_(False)
    random_weights.fill(model, 0)
    x = torch.from_numpy(support.image(1, 3, 448, 448))
    graph = lower(trace(model, support.spec_for("acmix_test", (448, 448))), "portable").model
    assert support.relative_error(support.run_model(graph, x.numpy())[0], model(x).numpy()) <= 1e-5


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


def test_a_backbones_file_is_told_to_be_one(tmp_path: Path) -> None:
    backbone = create_model("acmix_r26", features=True).state_dict()
    plain = {name.removeprefix("backbone."): tensor for name, tensor in backbone.items()}
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in plain.items()}}, tmp_path / "lightning.pth")
    with pytest.raises(CheckpointError, match=r"2 tensors missing.*no classifier: add --features"):
        create_model("acmix_r26", checkpoint=tmp_path / "lightning.pth")
    assert len(create_model("acmix_r26", checkpoint=tmp_path / "lightning.pth", features=True).state_dict()) == len(
        plain
    )


def test_images_of_another_number_of_channels_are_named(tmp_path: Path) -> None:
    torch.save(create_model("poolformer_s12", in_chans=4).state_dict(), tmp_path / "four.pth")
    with pytest.raises(
        CheckpointError, match=r"Its images have 4 channels: from Python, create_model\(\.\.\., in_chans=4\)"
    ):
        create_model("poolformer_s12", checkpoint=tmp_path / "four.pth")
    loaded = create_model("poolformer_s12", checkpoint=tmp_path / "four.pth", in_chans=4).state_dict()
    assert loaded["patch_embed.proj.weight"].shape == (64, 4, 7, 7)


@every_kind
def test_a_network_for_training_starts_from_drawn_weights(kind: str) -> None:
    """The seed decides all: nothing is left as it was in memory."""
    family, config = KINDS[kind]

    def built() -> nn.Module:
        torch.manual_seed(0)
        return family.build(config, BuildOptions(num_classes=10))

    held = [torch.full((1 << 20,), torch.nan) for _ in range(8)]  # what is in memory that is given out again
    del held
    first, second = built().state_dict(), built().state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert max(float(tensor.abs().max()) for tensor in first.values() if tensor.is_floating_point()) < 10

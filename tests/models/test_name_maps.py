# SPDX-License-Identifier: Apache-2.0
"""Checkpoints under timm's and Hugging Face's names: the same files their users have, and what those compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import support
import torch
from torch import Tensor

from metaformer_export import create_model
from metaformer_export.errors import CheckpointError
from metaformer_export.models import focalnet, hornet, metaformer_baselines, poolformer
from metaformer_export.models.loading import load_model
from metaformer_export.models.name_maps import NameMap, reshaped, to_authors

GOLDENS = [path for source in ("timm", "huggingface") for path in sorted((support.GOLDEN / source).glob("*.npz"))]
MARKED = [pytest.param(path, marks=[pytest.mark.slow] if "large" in path.stem else []) for path in GOLDENS]
TITLES = {"timm": "timm", "huggingface": "Hugging Face"}


def _state(source: str, name: str) -> dict[str, Tensor]:
    return support.golden_state_dict(f"{source}/{name}")


def test_every_golden_is_here() -> None:
    assert len(GOLDENS) == 8


@pytest.mark.parametrize("path", MARKED, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_gives_what_its_library_computes(path: Path, suffix: str, tmp_path: Path) -> None:
    data, state, file = support.golden.load(path), _state(path.parent.name, path.stem), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        safetensors.torch.save_file(state, file)
    loaded = load_model(path.stem, checkpoint=file)
    assert f"{TITLES[path.parent.name]}'s names in {file.name} mapped to the authors'." in loaded.notes
    x = torch.from_numpy(support.golden.image(data["input_shape"]))
    with torch.inference_mode():
        single = loaded.module(x.float())
        double = loaded.module.double()(x)
    assert double.dtype == torch.float64
    assert support.relative_error(double.numpy(), data["logits"]) <= 1e-5
    assert support.relative_error(single.numpy(), data["logits"]) <= 20 * float(data["fp32_rel"])


@pytest.mark.parametrize(
    ("used", "name", "expected"),
    [
        (focalnet._TIMM, "stem.norm.bias", "patch_embed.norm.bias"),
        (focalnet._TIMM, "layers.3.downsample.proj.weight", "layers.2.downsample.proj.weight"),
        (focalnet._TIMM, "layers_1.blocks.0.ls2.gamma", "layers.1.blocks.0.gamma_2"),
        (focalnet._TIMM, "layers.3.blocks.1.modulation.norm.weight", "layers.3.blocks.1.modulation.ln.weight"),
        (focalnet._TIMM, "layers.0.blocks.1.norm1_post.bias", "layers.0.blocks.1.norm1.bias"),
        (
            focalnet._HUGGINGFACE,
            "focalnet.encoder.stages.2.layers.17.modulation.layernorm.bias",
            "layers.2.blocks.17.modulation.ln.bias",
        ),
        (focalnet._HUGGINGFACE, "encoder.stages.0.downsample.norm.weight", "layers.0.downsample.norm.weight"),
        (focalnet._HUGGINGFACE, "encoder.stages.0.layers.1.gamma_2", "layers.0.blocks.1.gamma_2"),
        (poolformer._TIMM, "stages.3.downsample.conv.bias", "network.5.proj.bias"),
        (poolformer._TIMM, "stages_2.blocks.11.layer_scale2.scale", "network.4.11.layer_scale_2"),
        (poolformer._HUGGINGFACE, "encoder.patch_embeddings.2.projection.weight", "network.3.proj.weight"),
        (poolformer._HUGGINGFACE, "poolformer.encoder.block.3.1.after_norm.bias", "network.6.1.norm2.bias"),
        (metaformer_baselines._TIMM, "head.fc.norm.weight", "head.norm.weight"),
        (metaformer_baselines._TIMM, "head.norm.weight", "norm.weight"),
        (metaformer_baselines._TIMM, "stages.1.downsample.norm.weight", "downsample_layers.1.pre_norm.weight"),
    ],
)
def test_names_become_the_authors(used: NameMap, name: str, expected: str) -> None:
    assert used.rename(name) == expected


def test_the_authors_names_stay_as_they_are() -> None:
    for family, name in ((focalnet.FAMILY, "focalnet_tiny_srf"), (poolformer.FAMILY, "poolformer_s12")):
        state = support.golden_state_dict(name)
        named, used = to_authors(state, family)
        assert used is None
        assert list(named) == list(state)


def test_what_timm_computes_otherwise_is_followed_and_said(tmp_path: Path) -> None:
    """One set of numbers under both names: timm takes the mean before the last norm, the authors after it."""
    state = _state("timm", "poolformer_s12")
    torch.save(state, tmp_path / "timm.pth")
    torch.save(to_authors(state, poolformer.FAMILY)[0], tmp_path / "authors.pth")
    timm, authors = (load_model("poolformer_s12", checkpoint=tmp_path / f"{each}.pth") for each in ("timm", "authors"))
    x = torch.from_numpy(support.image(1, 3, 64, 64))
    with torch.inference_mode():
        assert support.relative_error(timm.module(x).numpy(), authors.module(x).numpy()) > 0.01
    assert any("Computed as timm computes it" in note and "before the last norm" in note for note in timm.notes)
    assert authors.notes == ()
    large = {variant.name: variant.config for variant in focalnet.FAMILY.variants}
    assert focalnet._TIMM.adapt is not None
    assert large["focalnet_large_fl4"].normalize
    assert not focalnet._TIMM.adapt(large["focalnet_large_fl4"]).normalize
    assert focalnet._TIMM.adapt(large["focalnet_large_fl3"]) == large["focalnet_large_fl3"]


def test_a_fine_tuned_half_precision_file_of_timm_loads(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in _state("timm", "poolformerv2_s12").items()}
    state["head.fc.weight"], state["head.fc.bias"] = torch.ones(37, 512).half(), torch.zeros(37).half()
    torch.save({"state_dict_ema": state, "epoch": 3}, tmp_path / "pets.pth")
    loaded = load_model("poolformerv2_s12", checkpoint=tmp_path / "pets.pth")
    assert loaded.spec.num_classes == 37
    assert torch.equal(loaded.module.head.weight, torch.ones(37, 512))
    stem = loaded.module.downsample_layers[0].conv.weight
    assert torch.equal(stem, state["stem.conv.weight"].float())
    assert sum("float16" in note or "37 classes" in note or "state_dict_ema" in note for note in loaded.notes) == 3


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_stage_maps_come_from_other_libraries_files_too(tmp_path: Path, prefix: str) -> None:
    state = _state("huggingface", "focalnet_tiny_srf")
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    other = {"neck.conv.weight": torch.ones(2)} if prefix else {}
    torch.save({**{prefix + name: tensor for name, tensor in backbone.items()}, **other}, tmp_path / "backbone.pth")
    torch.save(to_authors(state, focalnet.FAMILY)[0], tmp_path / "authors.pth")
    ours = load_model("focalnet_t", checkpoint=tmp_path / "backbone.pth", features=True)
    authors = create_model("focalnet_t", checkpoint=tmp_path / "authors.pth", features=True)
    x = torch.from_numpy(support.image(1, 3, 64, 96))
    with torch.inference_mode():
        maps, expected = ours.module(x), authors(x)
    assert [tuple(each.shape) for each in maps] == [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    assert all(torch.equal(left, right) for left, right in zip(maps, expected, strict=True))
    assert float(maps[3].std()) > 0.1
    assert any("left out: neck" in note for note in ours.notes) == bool(prefix)


def test_norms_that_no_classifier_has_are_plain(tmp_path: Path) -> None:
    torch.save(_state("huggingface", "poolformer_s12"), tmp_path / "pool.pth")
    loaded = load_model("poolformer_s12", checkpoint=tmp_path / "pool.pth", features=True)
    assert torch.equal(loaded.module.backbone.norm6.weight, torch.ones(512))
    assert float(loaded.module.backbone.norm0.bias.abs().sum()) == 0
    assert any("its head is left out" in note and "plain" in note for note in loaded.notes)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    state = _state("timm", "poolformer_s12")
    state["head.weight"] = torch.zeros(1000, 512)
    torch.save(state, tmp_path / "both.pth")
    with pytest.raises(CheckpointError, match=r"unexpected, first stem\.conv\.weight"):
        create_model("poolformer_s12", checkpoint=tmp_path / "both.pth")


def test_only_trailing_ones_are_reshaped() -> None:
    wanted = {"a": torch.ones(4, 2), "b": torch.ones(4, 2), "c": torch.ones(4, 2, 1, 1)}
    given = {"a": torch.ones(4, 2, 1, 1), "b": torch.ones(2, 4), "c": torch.ones(4, 2), "d": torch.ones(3, 1)}
    shapes = {name: tuple(tensor.shape) for name, tensor in reshaped(given, wanted).items()}
    assert shapes == {"a": (4, 2), "b": (2, 4), "c": (4, 2, 1, 1), "d": (3, 1)}


def test_derived_buffers_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = replace(support.small_family(), derived=("relative_position_index", "attn_mask"))
    monkeypatch.setattr("metaformer_export.models.registry.FAMILIES", (family,))
    model = create_model("hornet_test", seed=4)
    extra = {"stages.0.0.attn_mask": torch.ones(2, 2), "relative_position_index": torch.arange(4)}
    torch.save({**model.state_dict(), **extra}, tmp_path / "derived.pth")
    loaded = create_model("hornet_test", checkpoint=tmp_path / "derived.pth")
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert hornet.FAMILY.derived == ()

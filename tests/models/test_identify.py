# SPDX-License-Identifier: Apache-2.0
"""Which model a checkpoint is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import support
import torch
from torch import Tensor

from metaformer_export.errors import CheckpointError
from metaformer_export.models import identify as identify_module
from metaformer_export.models import registry
from metaformer_export.models.building import build
from metaformer_export.models.checkpoints import Checkpoint
from metaformer_export.models.family import BuildOptions, Family, Variant
from metaformer_export.models.identify import identify, likeliest

TWINS = {"metaformer_id_s12": "poolformer_s12"} | {
    f"identityformer_{size}": f"poolformerv2_{size}" for size in ("s12", "s24", "s36", "m36", "m48")
}
"""Models with the tensors of another that is more often met."""


def _read(tensors: dict[str, Tensor], file: str = "weights.pth") -> Checkpoint:
    return Checkpoint(Path(file), "", tensors, "", ("float32",))


def _state(family: Family, variant: Variant, options: BuildOptions) -> dict[str, Tensor]:
    return dict(build(family, variant, options, device="meta").state_dict())


@pytest.mark.parametrize(("family", "variant"), registry.variants(), ids=lambda each: each.name)
def test_every_variant_is_recognised_with_its_classes_and_channels(family: Family, variant: Variant) -> None:
    found = identify(_read(_state(family, variant, BuildOptions(21841, 4))))
    expected = TWINS.get(variant.name, variant.name.removesuffix("_384"))
    assert found.variant.name == expected
    assert variant in (found.variant, *found.others)
    assert (found.num_classes, found.in_chans, found.kind, found.source) == (21841, 4, "classifier", "authors")
    module = build(family, variant, BuildOptions(21841, 4), device="meta")
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "name", ["hornet_s_gf", "poolformer_s24", "metaformer_ppaa_s12_224", "caformer_m36", "focalnet_l_fl4"]
)
def test_backbones_and_detectors_are_recognised(name: str) -> None:
    family, variant = registry.find(name)
    state = _state(family, variant, BuildOptions(features=True))
    found = identify(_read(state))
    assert (found.variant, found.kind, found.num_classes) == (variant, "backbone", None)
    assert identify(_read({**state, "neck.conv.weight": torch.ones(2)})).kind == "detector"
    bare = {key.removeprefix("backbone."): tensor for key, tensor in state.items()}
    assert identify(_read(bare)).variant is variant


@pytest.mark.parametrize(
    "path", sorted(support.GOLDEN.glob("*/*.npz")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_other_libraries_files_are_recognised(path: Path) -> None:
    data = support.golden.load(path)
    shapes = support.golden_shapes(data)
    found = identify(_read({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}))
    assert (found.variant.name, found.source, found.num_classes) == (path.stem, path.parent.name, 1000)
    assert all(other.config == found.variant.config for other in found.others)


def test_the_files_name_decides_between_equal_tensors() -> None:
    family, variant = registry.find("identityformer_s12")
    state = _state(family, variant, BuildOptions())
    assert identify(_read(state, "identityformer_s12.pth")).variant is variant
    unsure = identify(_read(state))
    assert unsure.variant.name == "poolformerv2_s12"
    assert unsure.others == (variant,)
    assert "identityformer_s12 has the same tensors and computes something else" in unsure.note
    family, variant = registry.find("convformer_s18_384")
    state = _state(family, variant, BuildOptions())
    assert identify(_read(state, "convformer_s18_384_in21ft1k.pth")).variant is variant
    unsure = identify(_read(state, "best.pth"))
    assert unsure.variant.name == "convformer_s18"
    assert "convformer_s18_384 is the same network at another size" in unsure.note
    assert identify(_read(_state(*registry.find("focalnet_t"), BuildOptions()))).note == ""


def test_few_models_are_built_to_recognise_one(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def counted(*arguments, **keywords):
        built.append(arguments[1].name)
        return build(*arguments, **keywords)

    state = _state(*registry.find("focalnet_b_lrf"), BuildOptions(10))
    monkeypatch.setattr(identify_module, "build", counted)
    assert identify(_read(state)).variant.name == "focalnet_base_lrf"
    assert len(built) <= 2 * len(registry.FAMILIES)
    built.clear()
    del state["norm.bias"]
    assert likeliest(state) == " It looks like focalnet_b_lrf."
    assert len(built) <= 4 * len(registry.FAMILIES)


def test_what_is_not_recognised_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _state(*registry.find("caformer_s18"), BuildOptions(10))
    state["extra.weight"] = torch.ones(3)
    with pytest.raises(
        CheckpointError, match=r"weights\.pth is not recognised.*looks like caformer_s18\. .*--model"
    ) as error:
        identify(_read(state))
    assert "\n" not in str(error.value)
    timm = support.golden_shapes(support.golden.load(support.GOLDEN / "timm" / "poolformer_s12.npz"))
    near = {name: torch.empty(shape, device="meta") for name, shape in timm.items() if name != "head.norm.bias"}
    assert likeliest(near) == " It looks like poolformer_s12 under the names of timm."
    with pytest.raises(CheckpointError, match="like no model this tool knows"):
        identify(_read({"fc.weight": torch.ones(3, 3)}))
    odd = {"patch_embed.proj.weight": torch.ones(3), "head.weight": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match="like no model this tool knows"):
        identify(_read(odd))
    monkeypatch.setattr(registry, "FAMILIES", tuple(replace(family, name_maps=()) for family in registry.FAMILIES))
    with pytest.raises(CheckpointError, match="like no model"):
        identify(_read({name: torch.empty(shape, device="meta") for name, shape in timm.items()}))

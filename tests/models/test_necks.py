# SPDX-License-Identifier: Apache-2.0
"""Detection necks: what they compute, what may be asked for, and which checkpoints hold one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import support
import torch
from torch import nn

from metaformer_export import create_model
from metaformer_export.errors import CheckpointError, InputError
from metaformer_export.export.ops.global_filter.op import reference as filter_reference
from metaformer_export.models import hornet, registry
from metaformer_export.models.loading import load_model

pytestmark = pytest.mark.usefixtures("small_models")

NECKS = ("horfpn_7x7", "horfpn_gf")
CHANNELS = (16, 32, 64, 128)


def _neck(name: str) -> nn.Module:
    """With weights that make every branch matter, float64."""
    neck = next(neck for neck in hornet.FAMILY.necks if neck.name == name)
    return support.fill_golden(neck.build(CHANNELS).double())


def _maps(height: int, width: int, batch: int = 2) -> list[np.ndarray]:
    """Stage maps, the last of which is height x width."""
    random = np.random.RandomState(7)
    return [random.standard_normal((batch, c, height << 3 - i, width << 3 - i)) for i, c in enumerate(CHANNELS)]


class _Reference:
    """HorFPN in NumPy float64, from the parameters alone."""

    def __init__(self, neck: nn.Module) -> None:
        self.state = {name: tensor.numpy() for name, tensor in neck.state_dict().items()}

    def pointwise(self, name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = self.state[f"{name}.weight"][:, :, 0, 0], self.state[f"{name}.bias"]
        return np.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]

    def depthwise(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self.state[f"{name}.weight"][:, 0]
        size, (height, width) = weight.shape[-1], x.shape[-2:]
        padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
        total = np.zeros_like(x)
        for i in range(size):
            for j in range(size):
                total += weight[:, i, j, None, None] * padded[:, :, i : i + height, j : j + width]
        return total

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return self.state[f"{name}.weight"][:, None, None] * normal + self.state[f"{name}.bias"][:, None, None]

    def gates(self, name: str, x: np.ndarray) -> np.ndarray:
        if f"{name}.weight" in self.state:
            return self.depthwise(name, x) + self.state[f"{name}.bias"][:, None, None]
        x = self.norm(f"{name}.pre_norm", x)
        half = x.shape[1] // 2
        mixed = np.empty_like(x)
        mixed[:, 0::2] = self.depthwise(f"{name}.dw", x[:, :half])
        mixed[:, 1::2] = filter_reference(x[:, half:], self.state[f"{name}.complex_weight"])
        return self.norm(f"{name}.post_norm", mixed)

    def gnconv(self, name: str, x: np.ndarray) -> np.ndarray:
        projected = self.pointwise(f"{name}.proj_in", x)
        gates = self.gates(f"{name}.dwconv", projected[:, 128:])
        first = projected[:, :128] * gates[:, :128]
        return self.pointwise(f"{name}.proj_out", self.pointwise(f"{name}.pws.0", first) * gates[:, 128:])

    def __call__(self, maps: list[np.ndarray]) -> list[np.ndarray]:
        sums = [self.pointwise(f"lateral_convs.{i}.conv", x) for i, x in enumerate(maps)]
        for i in (2, 1, 0):
            sums[i] = sums[i] + sums[i + 1].repeat(2, axis=2).repeat(2, axis=3)
        levels = [self.gnconv(f"fpn_convs.{i}", x) for i, x in enumerate(sums)]
        return [*levels, levels[3][:, :, ::2, ::2]]


@pytest.mark.parametrize("name", NECKS)
@pytest.mark.parametrize("size", [(2, 3), (3, 1)])
def test_horfpn_is_its_definition(name: str, size: tuple[int, int]) -> None:
    neck, maps = _neck(name), _maps(*size)
    levels = neck([torch.from_numpy(each) for each in maps])
    expected = _Reference(neck)(maps)
    assert [tuple(level.shape) for level in levels] == [each.shape for each in expected]
    for level, want in zip(levels, expected, strict=True):
        assert support.relative_error(level.numpy(), want) <= 1e-10


@pytest.mark.parametrize(("size", "extra"), [(224, (4, 4)), ((96, 64), (2, 1)), (32, (1, 1)), ((256, 320), (4, 5))])
def test_the_fifth_level_is_every_second_pixel_of_the_fourth(size, extra: tuple[int, int]) -> None:
    model = create_model("hornet_test", features=True, neck="horfpn_7x7", image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        levels = model(torch.from_numpy(support.image(1, 3, height, width)))
    assert isinstance(levels, tuple)
    assert [tuple(each.shape) for each in levels[:4]] == [(1, 256, height >> s, width >> s) for s in (2, 3, 4, 5)]
    assert levels[4].shape[2:] == extra
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


@pytest.mark.parametrize("name", NECKS)
def test_random_weights_keep_every_branch_of_the_neck_alive(name: str) -> None:
    """Every lateral reaches its own level and all finer ones; every gnConv's gates matter."""
    model = create_model("hornet_test", features=True, neck=name)
    x = torch.from_numpy(support.image(1, 3, 64, 96))

    def moved(module: nn.Module) -> list[bool]:
        """Which levels change visibly when a module's output is zero."""
        handle = module.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        outputs = model(x)
        handle.remove()
        return [support.relative_error(outputs[i].numpy(), levels[i].numpy()) > 0.05 for i in range(5)]

    with torch.inference_mode():
        levels = model(x)
        for i in range(4):
            assert moved(model.neck.lateral_convs[i].conv) == [level <= i or i == 3 for level in range(5)]
            own = [level == i or (i == 3 and level == 4) for level in range(5)]
            gnconv = model.neck.fpn_convs[i]
            filters = [gnconv.dwconv] if name == "horfpn_7x7" else [gnconv.dwconv.dw]
            assert all(moved(module) == own for module in (*filters, gnconv.proj_in, gnconv.pws[0]))
        if name == "horfpn_gf":
            model.neck.fpn_convs[1].dwconv.complex_weight.zero_()
            assert support.relative_error(model(x)[1].numpy(), levels[1].numpy()) > 0.05


def test_a_neck_is_asked_for_in_one_way_and_refused_with_the_way_out() -> None:
    wrong = {
        "the neck horfpn_gf works on stage maps; ask for features (--features) too, or leave it out.": {
            "neck": "horfpn_gf"
        },
        "unknown neck 'fpn'; hornet_test takes horfpn_7x7 or horfpn_gf.": {"neck": "fpn", "features": True},
    }
    for text, keywords in wrong.items():
        with pytest.raises(InputError) as caught:
            create_model("hornet_test", **keywords)
        assert str(caught.value) == text


def test_a_family_without_necks_names_those_that_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(hornet.FAMILY, variants=(support.small_variant("bare_test", support.SMALL),), necks=())
    monkeypatch.setattr(registry, "FAMILIES", (bare, hornet.FAMILY))
    with pytest.raises(InputError) as caught:
        create_model("bare_test", features=True, neck="horfpn_gf")
    expected = "bare_test has no necks; leave out horfpn_gf. Necks come with HorNet (horfpn_7x7, horfpn_gf)."
    assert str(caught.value) == expected
    assert registry.describe(bare, bare.variants[0])["necks"] == []


def test_the_spec_names_the_neck_and_its_levels() -> None:
    spec = load_model("hornet_test", features=True, neck="horfpn_gf").spec
    assert (spec.neck, spec.outputs) == ("horfpn_gf", ("p2", "p3", "p4", "p5", "p6"))
    plain = load_model("hornet_test", features=True).spec
    assert (plain.neck, plain.outputs) == ("", ("stage0", "stage1", "stage2", "stage3"))
    necks_own = sum(parameter.numel() for parameter in _neck("horfpn_gf").parameters())
    assert spec.parameters - plain.parameters == necks_own > 0


def test_a_detectors_checkpoint_gives_backbone_and_neck(tmp_path: Path) -> None:
    detector = create_model("hornet_test", features=True, neck="horfpn_7x7", seed=5)
    torch.save({"state_dict": {**detector.state_dict(), "roi_head.fc.bias": torch.ones(3)}}, tmp_path / "d.pth")
    loaded = load_model("hornet_test", checkpoint=tmp_path / "d.pth", features=True, neck="horfpn_7x7")
    state = detector.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.module.state_dict().items())
    assert list(loaded.module.state_dict()) == list(state)
    assert "Not part of the backbone and the neck, and left out: roi_head." in loaded.notes
    bare = load_model("hornet_test", checkpoint=tmp_path / "d.pth", features=True)
    assert "Not part of the backbone and left out: neck, roi_head." in bare.notes
    assert not any(name.startswith("neck.") for name in bare.module.state_dict())


@pytest.mark.parametrize("features", [True, False])
def test_a_neck_of_random_weights_is_never_put_behind_a_checkpoint(tmp_path: Path, features: bool) -> None:
    path = tmp_path / "mine.pth"
    torch.save(create_model("hornet_test", features=features).state_dict(), path)
    with pytest.raises(CheckpointError) as caught:
        create_model("hornet_test", checkpoint=path, features=True, neck="horfpn_gf")
    assert str(caught.value) == (
        f"checkpoint {path} holds no weights of a neck (under neck.*), and none are made up; "
        "give the detector's checkpoint, or leave out the neck horfpn_gf."
    )


def test_another_neck_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "gf.pth"
    state = create_model("hornet_test", features=True, neck="horfpn_gf").state_dict()
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"It looks like hornet_test with features and horfpn_gf\.$"):
        create_model("hornet_test", checkpoint=path, features=True, neck="horfpn_7x7")
    del state["neck.fpn_convs.2.proj_out.bias"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"first neck\.fpn_convs\.2\.proj_out\.bias\. .* that was changed"):
        create_model("hornet_test", checkpoint=path, features=True, neck="horfpn_gf")
    plain = {**create_model("hornet_test", features=True).state_dict(), "neck.fpn_convs.0.conv.weight": torch.ones(3)}
    torch.save(plain, path)
    with pytest.raises(CheckpointError, match=r"56 tensors missing, first neck\.lateral_convs\.0\.conv\.weight"):
        create_model("hornet_test", checkpoint=path, features=True, neck="horfpn_gf")

# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files as users have them, and as they should not be."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from metaformer_export import create_model
from metaformer_export.errors import CheckpointError
from metaformer_export.models.checkpoints import read_checkpoint
from metaformer_export.models.loading import load_model

pytestmark = pytest.mark.usefixtures("small_models")


@pytest.fixture
def model(small_models: None) -> nn.Module:
    return create_model("hornet_test", seed=3)


def _same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_every_file_type_loads(model: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    assert _same(create_model("hornet_test", checkpoint=path), model)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes_are_taken_off(model: nn.Module, tmp_path: Path, wrapper: str, prefix: str) -> None:
    path = tmp_path / "training.pth"
    tensors = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "args": argparse.Namespace(lr=1e-3), wrapper: tensors}, path)
    loaded = load_model("hornet_test", checkpoint=path)
    assert _same(loaded.module, model)
    assert any(wrapper in note for note in loaded.notes)


def test_prefixes_may_be_nested_and_wrappers_may_hold_other_things(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "nested.pth"
    tensors = {"_orig_mod.module." + key: value for key, value in model.state_dict().items()}
    best = np.float64(83.1)
    torch.save({"model_ema": {"decay": 0.9}, "model": {"state_dict": tensors}, "best": best, "out": tmp_path}, path)
    assert _same(create_model("hornet_test", checkpoint=path), model)


def test_a_checkpoint_that_contains_itself_is_read(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "loop.pth"
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(path)


def test_safetensors_are_known_by_their_content(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    safetensors.torch.save_file(model.state_dict(), path)
    assert _same(create_model("hornet_test", checkpoint=path), model)


def test_tensors_of_another_kind_are_refused(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    good = model.state_dict()
    name = "stages.0.0.gamma1"
    odd = {
        "integers instead of floats, first stages.0.0.gamma1": good[name].long(),
        "sparse or complex": good[name].to(torch.complex64),
        "gamma1 is a meta": good[name].to("meta"),
        "gamma1 is a meta, sparse": good[name].to_sparse(),
        r"first head.weight \(\) instead of": None,
    }
    for why, tensor in odd.items():
        torch.save({**good, name: tensor} if tensor is not None else {**good, "head.weight": torch.tensor(1.0)}, path)
        with pytest.raises(CheckpointError, match=why):
            create_model("hornet_test", checkpoint=path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_at_once(model: nn.Module, tmp_path: Path, value: float) -> None:
    path = tmp_path / "diverged.pth"
    state = model.state_dict()
    state["stages.1.0.pwconv1.bias"][3] = value
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"not finite, first in stages\.1\.0\.pwconv1\.bias"):
        create_model("hornet_test", checkpoint=path)


def test_a_changed_checkpoint_of_the_same_model_is_called_that(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "changed.pth"
    state = dict(model.state_dict())
    del state["norm.bias"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"first norm\.bias\. It looks like a hornet_test that was changed"):
        create_model("hornet_test", checkpoint=path)


def test_averaged_weights_are_preferred(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "both.pth"
    zeros = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    torch.save({"model": zeros, "model_ema": model.state_dict()}, path)
    assert _same(create_model("hornet_test", checkpoint=path), model)


def test_half_precision_checkpoints_are_read_into_float32(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({key: value.half() for key, value in model.state_dict().items()}, path)
    loaded = load_model("hornet_test", checkpoint=path)
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert any("float16" in note for note in loaded.notes)


def test_a_head_of_another_size_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "pets.pth"
    torch.save(create_model("hornet_test", num_classes=37).state_dict(), path)
    loaded = load_model("hornet_test", checkpoint=path)
    assert loaded.spec.num_classes == 37
    assert loaded.module.head.weight.shape == (37, 128)
    with pytest.raises(CheckpointError, match="37 classes, not 10"):
        create_model("hornet_test", checkpoint=path, num_classes=10)


def test_detectors_and_classifiers_checkpoints_give_features(model: nn.Module, tmp_path: Path) -> None:
    dense = create_model("hornet_test", features=True, seed=5)
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": {**dense.state_dict(), "neck.conv.weight": torch.ones(3)}}, path)
    loaded = load_model("hornet_test", checkpoint=path, features=True)
    assert _same(loaded.module, dense)
    assert any("neck" in note for note in loaded.notes)
    torch.save(model.state_dict(), path)
    loaded = load_model("hornet_test", checkpoint=path, features=True)
    assert torch.equal(loaded.module.backbone.norm2.weight, torch.ones(64))
    assert torch.equal(loaded.module.backbone.stages[0][0].gamma1, model.stages[0][0].gamma1)
    assert any("its head is left out" in note for note in loaded.notes)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "gf.pth"
    torch.save(create_model("hornet_test_gf").state_dict(), path)
    with pytest.raises(CheckpointError) as caught:
        create_model("hornet_test", checkpoint=path)
    message = str(caught.value)
    assert "first stages.2.0.gnconv.dwconv.weight" in message
    assert "first stages.2.0.gnconv.dwconv.complex_weight" in message
    assert message.endswith("It looks like hornet_test_gf.")
    assert "\n" not in message


def test_another_width_is_refused_with_the_shapes(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"\(16, 3, 4, 4\) instead of \(64, 3, 4, 4\)"):
        create_model("hornet_t", checkpoint=path)


class _Attack:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("zip.pth", torch.save),
        ("raw.pth", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        path = tmp_path / name
        write({"model": _Attack()}, path)
        with pytest.raises(CheckpointError, match="would run code when opened"):
            read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_damaged_and_foreign_files_are_refused_in_one_line(model: nn.Module, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(model.state_dict(), whole)
    tensors = tmp_path / "whole.safetensors"
    safetensors.torch.save_file(model.state_dict(), tensors)
    bad = {
        "missing.pth": None,
        "cut.pth": whole.read_bytes()[: whole.stat().st_size // 2],
        "cut.safetensors": tensors.read_bytes()[:1000],
        "empty.pth": b"",
        "text.pth": b"not a checkpoint at all\n",
        "image.pth": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for name, content in bad.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value), name
    for length in (28, 49, 200, 3000):  # the format before zip files fails in another way at each
        torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        (tmp_path / "old.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path / "old.pth")
    for value in ([1, 2], {"a": 1}, torch.ones(2)):
        torch.save(value, whole)
        with pytest.raises(CheckpointError, match=r"not a state dict|holds no tensors"):
            read_checkpoint(whole)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull")],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_were_never_fetched_are_called_that(content: bytes, said: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(path)

# SPDX-License-Identifier: Apache-2.0
"""Accuracy of exported models that were trained: small ones, on handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trained_models import TRAINED, Digits, Trained, digits

from metaformer_export import ExportOptions, export_model
from metaformer_export.cli import main

POOLFORMER = next(each for each in TRAINED if each.name == "poolformer")


@pytest.fixture(scope="module")
def testing() -> Digits:
    return digits()[1]


@pytest.fixture(scope="module")
def tree(testing: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images, a folder for each digit."""
    folder = tmp_path_factory.mktemp("digits")
    testing.write(folder)
    return folder


def export(trained: Trained, folder: Path) -> Path:
    options = ExportOptions(
        model=trained.model,
        checkpoint=trained.weights,
        sizes=trained.sizes,
        resolution=(trained.side, trained.side),
        target="onnx",
        output=folder,
    )
    assert export_model(options).parity.passed
    return folder


@pytest.fixture(scope="module")
def poolformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(POOLFORMER, tmp_path_factory.mktemp("eval") / "poolformer")


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    capsys.readouterr()
    assert main(["eval", *map(str, arguments), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_an_exported_model_is_as_right_as_eager(
    poolformer: Path, tree: Path, testing: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, poolformer, "--data", tree, "--checkpoint", POOLFORMER.weights)
    assert found["images"] == len(testing.labels) == 454
    assert found["top1"] == found["eager_top1"]
    assert found["top1"] >= 95  # type: ignore[operator]
    assert found["top5"] >= found["top1"]  # type: ignore[operator]
    assert found["agreement"] == 100
    assert found["rms_rel"] < 1e-5  # type: ignore[operator]
    assert found["images_per_second"] > 0  # type: ignore[operator]


def test_people_read_lines(poolformer: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(poolformer), "--data", str(tree), "--limit", "40", "--batch-size", "16"]) == 0
    said = capsys.readouterr()
    assert f"40 of 454 images in {tree}" in said.out
    assert "64x64, bicubic, crop 0.9, mean (0.485, 0.456, 0.406)" in said.out
    assert "top-1 " in said.out
    assert "images/s at batch 16" in said.out
    assert "--checkpoint FILE (poolformer.safetensors) compares with eager" in said.err


def test_tensors_without_labels_are_compared_with_eager_alone(
    poolformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.random.RandomState(0).standard_normal((5, 3, 64, 64)).astype(np.float32))
    found = evaluated(capsys, poolformer, "--data", tmp_path, "--checkpoint", POOLFORMER.weights)
    assert (found["images"], found["top1"], found["agreement"]) == (5, None, 100)
    images = np.random.RandomState(1).standard_normal((3, 3, 64, 64)).astype(np.float32)
    np.savez(tmp_path / "y.npz", images=images, labels=np.arange(3))
    found = evaluated(capsys, poolformer, "--data", tmp_path, "--batch-size", "2")
    assert (found["images"], found["top1"]) == (8, None)  # some without


def test_what_does_not_go_together_is_refused(
    poolformer: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = next(each for each in TRAINED if each.name == "hornet").weights
    few = tmp_path / "few"
    digits()[1].write(few)
    for left in few.glob("9/*"):
        left.unlink()
    np.savez(tmp_path / "labels.npz", images=np.zeros((1, 3, 64, 64), np.float32), labels=np.array([10]))
    labels = tmp_path / "labels"
    labels.mkdir()
    (tmp_path / "labels.npz").rename(labels / "labels.npz")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text('{"model": {}}')
    wrong = [
        ((tmp_path, "--data", tree), "is no output folder of metaformer-export"),
        ((damaged, "--data", tree), "is damaged"),
        ((poolformer, "--data", few), "has 9 folders of classes (0, 1, 2, ...), the model 10"),
        ((poolformer, "--data", labels), "labels.npz[0] has label 10, the model has classes 0 to 9"),
        ((poolformer, "--data", tree, "--checkpoint", other), "is not what was exported, which was poolformer.saf"),
        ((poolformer, "--data", tmp_path / "nowhere"), "does not exist"),
        ((poolformer, "--data", tree, "--batch-size", "0"), "--batch-size"),
    ]
    for arguments, said in wrong:
        capsys.readouterr()
        assert main(["eval", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("trained", TRAINED, ids=lambda each: each.name)
def test_trained_weights_are_small(trained: Trained) -> None:
    assert trained.weights.stat().st_size < 1e6

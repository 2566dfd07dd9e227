# SPDX-License-Identifier: Apache-2.0
"""metaformer-export parity: a delivered file against eager again, and the module that departs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir as ir
import pytest
import support

from metaformer_export.cli import main
from metaformer_export.export.graph import module_of

SPOILT = ("stages.1.0.gnconv.proj_out", pytest.param("stages.2.0.pwconv1", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    support.install_small_family()
    folder = tmp_path_factory.mktemp("parity") / "made"
    assert main(["--model", "hornet_test", "--fp16", "--target", "onnx", "--output", str(folder)]) == 0
    return folder


def spoil(folder: Path, module: str) -> None:
    """Turn the signs of half the output channels of the layer that a module became."""
    model = ir.load(folder / "model.onnx")
    node = next(node for node in model.graph if module_of(node) == module and node.op_type in ("Conv", "MatMul"))
    weight = next(value for value in node.inputs if value is not None and value.const_value is not None)
    array = weight.const_value.numpy().copy()
    array[: len(array) // 2] *= -1
    weight.const_value = ir.tensor(array, name=weight.name)
    ir.save(model, folder / "model.onnx")


def test_a_sound_file_holds_and_no_module_departs(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(exported), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["passed"] is True
    assert main(["parity", str(exported), "--layers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["departed"] is None
    assert len(found["modules"]) > 20
    assert max(each["increase"] for each in found["modules"]) < 4


@pytest.mark.parametrize("module", SPOILT)
def test_the_module_with_a_spoilt_weight_is_named(
    module: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "spoilt"))
    spoil(folder, module)
    assert main(["parity", str(folder)]) == 1
    assert "parity failed: logits: " in capsys.readouterr().err
    assert main(["parity", str(folder), "--layers", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["departed"]["module"] == module


def test_what_is_not_there_is_a_line(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path)], "is no output folder of metaformer-export"),
        ([str(exported), "--file", "model.plan"], "model.plan does not exist; "),
        ([str(exported), "--images", str(tmp_path / "none")], "none"),
    ):
        assert main(["parity", *arguments]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(said) == 1
        assert message in said[0]

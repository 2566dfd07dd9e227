# SPDX-License-Identifier: Apache-2.0
"""The wheel, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_works_from_another_directory(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "metaformer_export",
        wheel.name[: -len("-py3-none-any.whl")] + ".dist-info",
    }
    assert not any("/tests/" in name or "/benchmarks/" in name for name in names)
    venv.create(tmp_path / "env", with_pip=True)
    binaries = tmp_path / "env" / "bin"
    subprocess.run(
        [binaries / "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]"], check=True, cwd=tmp_path
    )
    work = tmp_path / "elsewhere"
    work.mkdir()
    command = [binaries / "metaformer-export", "--model", "hornet_t", "--resolution", "64", "--fp16", "--json"]
    summary = json.loads(subprocess.check_output(command, cwd=work, text=True))
    assert summary["parity"]["passed"] is True
    assert summary["parity"]["outputs"][0]["rms_rel"] <= 0.01
    assert (work / summary["folder"] / "model.onnx").stat().st_size == summary["files"]["model.onnx"] > 40e6

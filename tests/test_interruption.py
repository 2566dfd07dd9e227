# SPDX-License-Identifier: Apache-2.0
"""An export that is stopped, whatever stops it, leaves nothing half done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support

from metaformer_export.cli import main
from metaformer_export.models.checkpoints import sha256_of

RUN_SMALL = str(Path(__file__).parent / "run_small.py")


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, RUN_SMALL, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the model is larger."""
    process = start("--limit-file-size", "100000", "--model", "hornet_test", cwd=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("metaformer-export: error: output folder")
    assert "cannot be written" in errors.splitlines()[-1]
    assert support.files_below(tmp_path) == []


@pytest.mark.parametrize("stage", ["start", pytest.param("load", marks=pytest.mark.slow), "trace"])
def test_kill_9_before_anything_is_written_leaves_nothing(tmp_path: Path, stage: str) -> None:
    kill_after(stage, tmp_path)
    assert support.files_below(tmp_path) == []


@pytest.mark.parametrize("stage", [pytest.param("lower", marks=pytest.mark.slow), "convert", "parity", "time"])
def test_kill_9_while_writing_leaves_no_half_folder(tmp_path: Path, stage: str) -> None:
    """The folder is there with every file its manifest names, or it is not there."""
    kill_after(stage, tmp_path)
    folder = tmp_path / "build" / "hornet_test-fp32"
    assert [path.name for path in (tmp_path / "build").glob("[!.]*")] in ([], [folder.name])
    if folder.exists():
        outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
        assert all(sha256_of(folder / name) == entry["sha256"] for name, entry in outputs.items())


def test_kill_9_leaves_an_old_folder_as_it_was_and_the_next_run_tidies(
    tmp_path: Path, small_models: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", "hornet_test"]) == 0
    folder = tmp_path / "build" / "hornet_test-fp32"
    before = {path: sha256_of(path) for path in folder.rglob("*") if path.is_file()}
    assert len({path.relative_to(folder).parts[0] for path in before}) == 6
    kill_after("parity", tmp_path)
    assert {path: sha256_of(path) for path in folder.rglob("*") if path.is_file()} == before
    assert main(["--model", "hornet_test"]) == 0
    assert list((tmp_path / "build").iterdir()) == [folder]


def test_an_interrupt_that_torch_wrapped_is_still_one(monkeypatch, capsys) -> None:
    """torch turns a Ctrl-C during its own imports into errors of its own."""

    def interrupted(*_: object) -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise AttributeError("half-loaded")
        except AttributeError as error:
            raise RuntimeError("Failed to export the model") from error

    monkeypatch.setattr("metaformer_export.cli._options", interrupted)
    assert main(["--model", "hornet_t"]) == 130
    assert "interrupted" in capsys.readouterr().err


def kill_after(stage: str, folder: Path) -> None:
    """Run an export and kill it as soon as it says that a stage is done."""
    process = start("--model", "hornet_test", cwd=folder)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(stage):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    process = start("--model", "hornet_test", cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("load"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "metaformer-export: error: interrupted; nothing half-written is left."
    assert support.files_below(tmp_path) == []

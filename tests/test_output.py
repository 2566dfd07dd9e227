# SPDX-License-Identifier: Apache-2.0
"""The output folder appears whole or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaformer_export import output
from metaformer_export.errors import OutputError
from metaformer_export.output import check_output, staged, writing


def write(folder: Path, text: str) -> None:
    with staged(folder) as staging:
        (staging / "manifest.json").write_text(manifest(text))


def manifest(text: str, *outputs: str) -> str:
    return json.dumps({"tool": "metaformer-export", "outputs": dict.fromkeys(outputs), "text": text})


def read(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["text"]


def fail(folder: Path, error: BaseException) -> None:
    with staged(folder) as staging:
        (staging / "half").write_text("half")
        with writing(folder):
            raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", "1")
    assert read(tmp_path / "a" / "b") == "1"
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("atomic", [True, False])
def test_an_old_folder_is_replaced_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    if not atomic:
        monkeypatch.setattr(output, "_exchange", lambda a, b: False)
    write(tmp_path / "b", "1")
    write(tmp_path / "b", "2")
    assert names(tmp_path / "b") == ["manifest.json"]
    assert read(tmp_path / "b") == "2"
    assert names(tmp_path) == ["b"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "b", "1")
    for error in (RuntimeError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(tmp_path / "b", error)
    assert names(tmp_path) == ["b"]
    assert read(tmp_path / "b") == "1"
    with pytest.raises(OutputError, match="No space left"):
        fail(tmp_path / "c" / "d", OSError(28, "No space left on device"))
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("old", [True, False])
def test_kill_leaves_the_old_folder_or_none_and_the_next_run_tidies(tmp_path: Path, old: bool) -> None:
    folder = tmp_path / "b"
    if old:
        write(folder, "1")
    code = (
        "import sys, time, pathlib; from metaformer_export.output import staged\n"
        "with staged(pathlib.Path(sys.argv[1])) as s:\n"
        "    (s / 'manifest.json').write_text('{'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.exists() is old
    if old:
        assert read(folder) == "1"
    write(folder, "2")
    assert names(tmp_path) == ["b"]
    assert read(folder) == "2"


def test_the_work_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with staged(tmp_path / "b") as theirs:
        (theirs / "manifest.json").write_text(manifest("theirs"))
        write(tmp_path / "b", "ours")
        assert theirs.is_dir()
    assert read(tmp_path / "b") == "theirs"
    assert names(tmp_path) == ["b"]


def test_what_a_run_without_atomic_exchange_left_is_restored(tmp_path: Path) -> None:
    write(tmp_path / "b", "1")
    (tmp_path / "b").rename(tmp_path / ".b.old-1")  # killed between its two renames
    with pytest.raises(RuntimeError):
        fail(tmp_path / "b", RuntimeError())
    assert read(tmp_path / "b") == "1"


def test_replacing_never_leaves_a_moment_without_a_folder(tmp_path: Path) -> None:
    """A reader that looks all the time always finds a whole folder."""
    folder = tmp_path / "b"
    write(folder, "0")
    watcher = (
        "import sys, pathlib; p = pathlib.Path(sys.argv[1]); missing = looks = 0\n"
        "print('ready', flush=True)\n"
        "while not (p.parent / 'stop').exists():\n"
        "    looks += 1; missing += not (p / 'manifest.json').exists()\n"
        "print(looks, missing)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", watcher, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    for i in range(200):
        write(folder, str(i))
    time.sleep(0.05)
    (tmp_path / "stop").touch()
    looks, missing = map(int, process.communicate()[0].split())
    assert looks > 200
    assert missing == 0


def test_what_cannot_be_an_output_is_refused_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("mine")
    (tmp_path / "link").symlink_to(full)
    cases = [
        (file, "is a file"),
        (file / "below", "which is a file|Not a directory"),
        (full, "thesis.tex for one"),
        (tmp_path / "link", "symbolic link"),
        (Path("/proc"), "mount point"),
        (Path("/proc/nothing/can/be/written"), "cannot be written"),
        (tmp_path / ("x" * 250), "File name too long"),
    ]
    for folder, why in cases:
        with pytest.raises(OutputError, match=why):
            check_output(folder)
    assert check_output(tmp_path / "new" / "folder") is None
    assert names(tmp_path) == ["file", "full", "link"]
    assert names(full) == ["thesis.tex"]


def test_a_folder_with_a_manifest_of_something_else_is_not_ours(tmp_path: Path) -> None:
    """Browser extensions and web apps have a manifest.json, too."""
    for content in ('{"manifest_version": 3}', "[]", "{", json.dumps({"tool": "metaformer-export"})):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(OutputError, match="not from metaformer-export"):
            check_output(tmp_path)


def test_what_a_user_added_to_our_folder_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    with staged(folder) as staging:
        (staging / "model.onnx").touch()
        (staging / "manifest.json").write_text(manifest("1", "model.onnx"))
    old = check_output(folder)
    assert old is not None
    assert old["text"] == "1"
    (folder / "model.plan").write_text("built by hand")
    with pytest.raises(OutputError, match=r"model\.plan for one"):
        check_output(folder)
    with pytest.raises(OutputError, match=r"model\.plan for one"):
        write(folder, "2")
    assert (folder / "model.plan").read_text() == "built by hand"
    assert names(tmp_path) == ["b"]


def test_a_folder_that_may_not_be_read_is_one_clear_error(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    code = (
        "import os, sys, pathlib; from metaformer_export.output import check_output\n"
        "from metaformer_export.errors import OutputError\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"  # root may read everything
        "try: check_output(pathlib.Path(sys.argv[1]))\n"
        "except OutputError as error: print(error)\n"
    )
    said = subprocess.check_output([sys.executable, "-c", code, str(closed / "b")], text=True)
    closed.chmod(0o700)
    assert "cannot be written: Permission denied" in said

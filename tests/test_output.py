# SPDX-License-Identifier: Apache-2.0
"""The output folder appears whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaformer_export import output
from metaformer_export.errors import OutputError
from metaformer_export.output import check_output, staged


def write(folder: Path, text: str) -> None:
    with staged(folder) as staging:
        (staging / "manifest.json").write_text(text)


def fail(folder: Path, error: BaseException) -> None:
    with staged(folder) as staging:
        (staging / "half").write_text("half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", "1")
    assert (tmp_path / "a" / "b" / "manifest.json").read_text() == "1"
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("atomic", [True, False])
def test_an_old_folder_is_replaced_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    if not atomic:
        monkeypatch.setattr(output, "_exchange", lambda a, b: False)
    write(tmp_path / "b", "1")
    (tmp_path / "b" / "old").write_text("old")
    write(tmp_path / "b", "2")
    assert names(tmp_path / "b") == ["manifest.json"]
    assert (tmp_path / "b" / "manifest.json").read_text() == "2"
    assert names(tmp_path) == ["b"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "b", "1")
    for error in (RuntimeError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(tmp_path / "b", error)
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b" / "manifest.json").read_text() == "1"
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
        "    (s / 'manifest.json').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.exists() is old
    if old:
        assert (folder / "manifest.json").read_text() == "1"
    write(folder, "2")
    assert names(tmp_path) == ["b"]
    assert (folder / "manifest.json").read_text() == "2"


def test_the_work_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        theirs = tmp_path / f".b.partial-{process.pid}"
        theirs.mkdir()
        write(tmp_path / "b", "1")
        assert theirs.is_dir()
    finally:
        process.kill()
        process.wait()


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
    for folder, why in [(file, "is a file"), (file / "below", "is a file"), (full, "not from metaformer-export")]:
        with pytest.raises(OutputError, match=why):
            check_output(folder)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(Path("/proc/nothing/can/be/written"))
    check_output(tmp_path / "new" / "folder")
    assert names(tmp_path) == ["file", "full"]
    assert names(full) == ["thesis.tex"]

# SPDX-License-Identifier: Apache-2.0
"""Adding to a repository: versions are whole, nothing is overwritten, and a kill leaves what can be served."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import repositories
from repositories import deployable, edit, written
from support import files_below

from metaformer_export.errors import InputError, OutputError
from metaformer_export.runtime.triton.lint import lint
from metaformer_export.runtime.triton.options import RepositoryOptions
from metaformer_export.runtime.triton.publishing import Published, publish, versions_of

MODELS = ("small", "small_postprocess", "small_preprocess", "small_ensemble")
"""In the order in which they are added: the ensemble needs the others."""


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A model as it is written before it is added."""
    return written(deployable(tmp_path / "export"), tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """The same with other weights and other latencies, and so another configuration."""
    made = deployable(tmp_path / "export 2")
    (tmp_path / "export 2/model.onnx").write_bytes((tmp_path / "export 2/model.onnx").read_bytes() + b"\x12\x00")
    return written(made, tmp_path / "second", RepositoryOptions(instances=2))


@pytest.fixture
def repository(first: Path, tmp_path: Path) -> Path:
    """With version 1."""
    publish(first, tmp_path / "repository")
    return tmp_path / "repository"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, time of change and size of all that is below a folder: what is the same was not touched."""
    found = {str(path.relative_to(folder)): path.stat() for path in (folder, *folder.rglob("*"))}
    return {path: (each.st_ino, each.st_mtime_ns, each.st_size) for path, each in found.items()}


def versions(repository: Path) -> dict[str, list[int]]:
    return {each.name: versions_of(each) for each in sorted(repository.iterdir())}


def test_a_new_repository_is_made_with_its_parents(first: Path, tmp_path: Path) -> None:
    repository = tmp_path / "a" / "b" / "repository"
    assert publish(first, repository) == tuple(Published(model, 1, new=True) for model in MODELS)
    assert files_below(repository) == files_below(first)
    assert contents(repository) == contents(first)
    assert lint(repository) == ()
    assert list(repository.parent.iterdir()) == [repository]


def test_another_model_is_added_beside_what_is_there(repository: Path, tmp_path: Path) -> None:
    before = state(repository)
    other = written(replace(deployable(tmp_path / "other"), name="other"), tmp_path / "written")
    added = publish(other, repository)
    assert {(each.model, each.version, each.new) for each in added} == {
        (f"other{part}", 1, True) for part in ("", "_postprocess", "_preprocess", "_ensemble")
    }
    after = state(repository)
    assert {path: after[path] for path in before if path != "."} == {
        path: before[path] for path in before if path != "."
    }


@pytest.mark.parametrize("cached", [False, True])
def test_the_same_again_changes_nothing(first: Path, repository: Path, cached: bool) -> None:
    if cached:  # a server's Python leaves this beside the code
        for model in ("small_preprocess", "small_postprocess"):
            (repository / model / "1/__pycache__").mkdir()
            (repository / model / "1/__pycache__/model.cpython-312.pyc").write_bytes(b"compiled")
    before = state(repository)
    assert publish(first, repository) == tuple(Published(model, 1, new=False) for model in MODELS)
    assert state(repository) == before


def test_what_is_only_told_of_a_model_makes_no_version(first: Path, repository: Path) -> None:
    (first / "small/1/export.json").write_text("{}")
    assert [each.new for each in publish(first, repository)] == [False] * 4


def test_another_version_gets_the_next_number_and_the_first_is_not_touched(second: Path, repository: Path) -> None:
    before = {model: (contents(repository / model / "1"), state(repository / model / "1")) for model in MODELS}
    assert publish(second, repository) == (
        Published("small", 2, new=True),
        *(Published(model, 1, new=False) for model in MODELS[1:]),
    )
    assert contents(repository / "small/2") == contents(second / "small/1")
    for model in MODELS:
        assert (contents(repository / model / "1"), state(repository / model / "1")) == before[model]
    assert lint(repository) == ()


def test_versions_count_on_from_the_newest_as_numbers(first: Path, second: Path, repository: Path) -> None:
    (repository / "small/1").rename(repository / "small/9")
    (repository / "small/notes").mkdir()
    (repository / "small/077").mkdir()
    assert publish(second, repository)[0] == Published("small", 10, new=True)
    assert publish(first, repository)[0] == Published("small", 11, new=True)  # as 9 was, but 10 was not
    assert versions_of(repository / "small") == [9, 10, 11]


def test_versions_are_folders_named_by_a_number(tmp_path: Path) -> None:
    for name in ("1", "3", "10", "0", "02", "x", "-1", "1.0", "٣", ".partial-7"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").touch()
    assert versions_of(tmp_path) == [1, 3, 10]
    assert versions_of(tmp_path / "nowhere") == []


def test_a_configuration_is_replaced_in_one_step(second: Path, repository: Path) -> None:
    """A server that has the old file open goes on reading the old file."""
    path = repository / "small/config.pbtxt"
    with path.open() as held:
        old = path.stat().st_ino
        publish(second, repository)
        assert path.stat().st_ino != old
        assert "count: 1\n" in held.read()
    assert path.read_bytes() == (second / "small/config.pbtxt").read_bytes()
    assert repositories.read(path).instance_group[0].count == 2
    unchanged = repository / "small/labels.txt"
    assert unchanged.read_bytes() == (second / "small/labels.txt").read_bytes()


def test_files_beside_the_versions_come_before_the_configuration_that_names_them(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = deployable(tmp_path / "other")
    other = written(
        replace(made, photograph=(repositories.jpeg()[:-1] + b"!", bytes(9216))), tmp_path / "other written"
    )
    edit(other / "small", lambda config: config.model_warmup.add(name="more", batch_size=2))
    order: list[str] = []
    real = Path.replace

    def noted(path: Path, target: Path) -> Path:
        order.append(str(Path(target).relative_to(repository)))
        return real(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    publish(other, repository)
    assert order == ["small/warmup/pixels", "small/config.pbtxt", "small_preprocess/warmup/photograph"]


@pytest.mark.parametrize(("keep", "left", "removed"), [(None, [1, 2, 3], ()), (2, [2, 3], (1,)), (1, [3], (1, 2))])
def test_the_newest_versions_are_kept(
    first: Path, second: Path, repository: Path, keep: int | None, left: list[int], removed: tuple[int, ...]
) -> None:
    publish(second, repository)
    added = publish(first, repository, keep=keep)
    assert added[0] == Published("small", 3, new=True, removed=removed)
    assert added[1:] == tuple(Published(model, 1, new=False) for model in MODELS[1:])
    assert versions(repository) == {**{model: [1] for model in MODELS}, "small": left}
    assert not list(repository.rglob(".*"))


def test_versions_can_be_removed_without_a_new_one(second: Path, repository: Path) -> None:
    publish(second, repository)
    assert publish(second, repository, keep=1)[0] == Published("small", 2, new=False, removed=(1,))
    assert versions_of(repository / "small") == [2]


def asked_for(number: int) -> Callable[[Any], object]:
    return lambda config: config.version_policy.specific.versions.append(number)


def test_versions_that_are_asked_for_are_there_when_all_is_done(second: Path, repository: Path) -> None:
    edit(second / "small", asked_for(1))
    edit(second / "small", asked_for(2))
    assert publish(second, repository)[0] == Published("small", 2, new=True)
    assert lint(repository) == ()
    assert list(repositories.read(repository / "small/config.pbtxt").version_policy.specific.versions) == [1, 2]


@pytest.mark.parametrize(("number", "keep", "has"), [(3, None, "1, 2"), (1, 1, "2")])
def test_a_version_that_will_not_be_there_cannot_be_asked_for(
    second: Path, repository: Path, number: int, keep: int | None, has: str
) -> None:
    edit(second / "small", asked_for(number))
    before = state(repository)
    with pytest.raises(
        InputError, match=f"--version-policy asks for version {number} of .*/small, which will have {has}"
    ):
        publish(second, repository, keep=keep)
    assert state(repository) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda written: edit(written / "small", lambda config: setattr(config, "backend", "python")),
            "repository/small is there already and runs in onnxruntime, not python; give it another name with --name",
        ),
        (
            lambda written: edit(written / "small", lambda config: setattr(config, "platform", "tensorrt_plan")),
            "repository/small is there already and runs in onnxruntime",
        ),
        (
            lambda written: edit(written / "small_ensemble", lambda config: config.output[0].dims.__setitem__(0, 3)),
            "repository/small_ensemble is there already and gives scores FP32 [5], class_ids INT64 [5], labels STRING "
            "[5], not scores FP32 [3], class_ids INT64 [5]",
        ),
        (
            lambda written: edit(written / "small", lambda config: config.input[0].dims.__setitem__(1, 48)),
            "repository/small is there already and takes images FP32 [3, 24, 32], not images FP32 [3, 48, 32]; ",
        ),
        (
            lambda written: edit(written / "small", lambda config: setattr(config.input[0], "name", "pictures")),
            "takes images FP32 [3, 24, 32], not pictures FP32 [3, 24, 32]",
        ),
        (
            lambda written: edit(written / "small", lambda config: setattr(config.input[0], "data_type", 10)),
            "takes images FP32 [3, 24, 32], not images FP16 [3, 24, 32]",
        ),
    ],
)
def test_another_model_under_a_name_is_refused_before_anything_is_changed(
    second: Path, repository: Path, change: Callable[[Path], None], message: str
) -> None:
    change(second)
    before = state(repository)
    with pytest.raises(InputError, match=re.escape(message)):
        publish(second, repository)
    assert state(repository) == before


def test_a_model_that_cannot_be_read_is_not_added_to(second: Path, repository: Path) -> None:
    (repository / "small/config.pbtxt").unlink()
    before = state(repository)
    with pytest.raises(InputError, match=r"repository/small/config.pbtxt cannot be read"):
        publish(second, repository)
    assert state(repository) == before


def test_a_server_never_sees_a_folder_that_is_no_whole_model(
    first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of any name is a model to it; of a model, folders that are no numbers are passed over."""
    repository, seen = tmp_path / "repository", []
    real = os.fsync

    def look(descriptor: int) -> None:
        real(descriptor)
        seen.append(versions(repository))
        if seen[-1]:
            assert {(each.model, each.rule) for each in lint(repository)} <= {("small_ensemble", "ensemble")}

    monkeypatch.setattr(os, "fsync", look)
    publish(first, repository)
    publish(second, repository)
    assert len(seen) >= len(contents(first)) + 3
    assert {model for each in seen for model in each} == set(MODELS)
    assert [each.get("small", []) for each in seen] == sorted(each.get("small", []) for each in seen)
    assert seen[0] == {}


@pytest.mark.parametrize("empty", [True, False])
def test_a_repository_that_nothing_can_be_renamed_into_is_written_to_inside(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    """A volume of its own, for instance: in the folder of a model that is there, which a server passes over."""
    repository = tmp_path / "volume"
    (repository if empty else repository / "theirs").mkdir(parents=True)
    real, places = Path.rename, set()

    def across(path: Path, target: Path) -> Path:
        if repository not in path.parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        places.add(path.parents[1].relative_to(repository).as_posix())
        return real(path, target)

    monkeypatch.setattr(Path, "rename", across)
    assert [each.version for each in publish(first, repository)] == [1, 1, 1, 1]
    assert contents(repository) == contents(first)
    assert places == ({".", "small"} if empty else {"small", "theirs"})
    assert list(tmp_path.glob(".*")) == []


def test_a_repository_by_a_link_is_written_where_it_is(first: Path, second: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    publish(first, tmp_path / "link")
    publish(second, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert versions_of(tmp_path / "real/small") == [1, 2]


def test_what_a_killed_run_left_is_removed(first: Path, repository: Path) -> None:
    left = (repository.parent / ".repository.model-a", repository / ".partial-b", repository / "small/.partial-c")
    for each in left:
        (each / "small/1").mkdir(parents=True)
    theirs = repository.parent / ".repository-of-others.model-a"
    theirs.mkdir()
    publish(first, repository)
    assert [each.exists() for each in left] == [False] * 3
    assert theirs.is_dir()


KILLED = """
import os, shutil, signal, sys
from itertools import count
from pathlib import Path
from metaformer_export.runtime.triton.publishing import publish

before, written, folder, keep = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]) or None
left = 0

def counted(does, halfway=None):
    def run(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            if halfway:
                halfway(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return does(*arguments, **named)
    return run

def half(source, target):
    data = Path(source).read_bytes()
    Path(target).write_bytes(data[: len(data) // 2])

def publish_killed(repository, after):
    global left
    left = after
    os.fsync, os.rmdir = counted(os.fsync), counted(os.rmdir)
    Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
    shutil.copy2 = counted(shutil.copy2, half)
    publish(written, repository, keep=keep)

for after in count():
    repository = folder / str(after) / "repository"
    repository.parent.mkdir(parents=True)
    if before.is_dir():
        shutil.copytree(before, repository)
    child = os.fork()
    if child == 0:
        publish_killed(repository, after)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def killed(before: Path, written: Path, folder: Path, keep: int = 0) -> Iterator[Path]:
    """Repositories as a run leaves them that is killed before its first step, its second, and so on; then the whole."""
    arguments = [str(before), str(written), str(folder), str(keep)]
    subprocess.run([sys.executable, "-c", KILLED, *arguments], check=True, timeout=60)
    for each in sorted(folder.iterdir(), key=lambda each: int(each.name)):
        yield each / "repository"


def test_a_kill_at_any_step_of_the_first_run_leaves_whole_models_only(first: Path, tmp_path: Path) -> None:
    wanted, seen = contents(first), set()
    for repository in killed(tmp_path / "nothing", first, tmp_path / "runs"):
        found = versions(repository) if repository.is_dir() else {}
        seen.add(tuple(found))
        assert all(each == [1] for each in found.values())
        if found:
            assert lint(repository) == ()
            assert contents(repository) == {path: wanted[path] for path in wanted if path.split("/")[0] in found}
        publish(first, repository)
        assert contents(repository) == wanted
        assert files_below(repository.parent) == sorted(
            ["repository", *(f"repository/{p}" for p in files_below(first))]
        )
    assert seen == {
        (),
        ("small",),
        ("small", "small_postprocess"),
        ("small", "small_postprocess", "small_preprocess"),
        tuple(sorted(MODELS)),
    }


@pytest.mark.parametrize("keep", [0, 1])
def test_a_kill_at_any_step_of_a_new_version_leaves_whole_versions_only(
    first: Path, second: Path, repository: Path, tmp_path: Path, keep: int
) -> None:
    old, new = contents(first / "small/1"), contents(second / "small/1")
    before, seen = contents(repository), []
    for run in killed(repository, second, tmp_path / "runs", keep):
        found = versions(run)
        seen.append((found["small"], repositories.read(run / "small/config.pbtxt").instance_group[0].count))
        assert {**found, "small": [1]} == {model: [1] for model in MODELS}
        assert lint(run) == ()
        for number in found["small"]:
            assert contents(run / "small" / str(number)) == (old if number == 1 else new)
        assert {path: each for path, each in contents(run).items() if path.startswith("small_")} == {
            path: each for path, each in before.items() if path.startswith("small_")
        }
        publish(second, run, keep=keep or None)
        assert versions(run)["small"] == ([2] if keep else [1, 2])
        assert not list(run.parent.rglob(".*"))
        assert contents(run / "small/2") == new
    states = [([1], 1), ([1, 2], 1), ([1, 2], 2), *([([2], 2)] if keep else [])]
    assert [each for i, each in enumerate(seen) if i == 0 or seen[i - 1] != each] == states


WAITING = """
import os, sys
from pathlib import Path
from metaformer_export.runtime.triton.publishing import publish

real, told = os.fsync, []

def wait(descriptor):
    if not told:
        told.append(print("writing", flush=True))
        sys.stdin.readline()
    real(descriptor)

os.fsync = wait
publish(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_second_process_at_once_is_refused(first: Path, second: Path, repository: Path) -> None:
    arguments = [sys.executable, "-c", WAITING, str(second), str(repository)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        before = state(repository)
        with pytest.raises(OutputError, match=r"repository is being written by another process; try again\."):
            publish(first, repository)
        assert state(repository) == before
        process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert versions_of(repository / "small") == [1, 2]
    assert publish(first, repository)[0] == Published("small", 3, new=True)


def test_the_lock_of_a_killed_process_is_gone_with_it(second: Path, repository: Path) -> None:
    arguments = [sys.executable, "-c", WAITING, str(second), str(repository)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert publish(second, repository)[0] == Published("small", 2, new=True)
    assert not list(repository.rglob(".*"))


REFUSED = """
import os, resource, sys
from pathlib import Path
from metaformer_export.errors import OutputError
from metaformer_export.runtime.triton.publishing import publish

limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
elif os.geteuid() == 0:
    os.setuid(65534)  # root may write everywhere
try:
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
except OutputError as error:
    print(error)
"""


def refused(written: Path, repository: Path, limit: int = 0) -> str:
    arguments = [sys.executable, "-c", REFUSED, str(written), str(repository), str(limit)]
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_full_target_is_one_line_and_leaves_the_repository_as_it_was(
    first: Path, second: Path, repository: Path
) -> None:
    """A limit on the size of files stands in for the disk."""
    (second / "small/1/model.onnx").write_bytes(bytes(200_000))
    before = contents(repository)
    assert refused(second, repository, 100_000) == f"repository {repository} cannot be written: File too large.\n"
    assert contents(repository) == before
    assert not list(repository.parent.rglob(".*"))
    new = repository.parent / "new"
    assert refused(second, new, 100_000) == f"repository {new} cannot be written: File too large.\n"
    assert files_below(new) == []
    publish(first, new)
    assert contents(new) == contents(first)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can look into, as pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_target_that_may_not_be_written_is_one_line(first: Path, repository: Path, shared: Path) -> None:
    shutil.copytree(first, shared / "first")
    theirs = Path(shutil.copytree(repository, shared / "repository"))
    for folder in (theirs, *(path for path in theirs.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    edit(shared / "first/small", lambda config: setattr(config.instance_group[0], "count", 3))
    denied = f"repository {theirs} cannot be written: Permission denied.\n"
    assert refused(shared / "first", theirs) == denied
    shutil.rmtree(shared / "first/small")
    (shared / "first/small_postprocess").rename(shared / "first/new")
    assert refused(shared / "first", theirs) == denied
    assert contents(theirs) == contents(repository)
    assert refused(shared / "first", shared / "new" / "repository") == (
        f"repository {shared}/new/repository cannot be written: Permission denied.\n"
    )
    for folder in (theirs, *theirs.rglob("*")):
        folder.chmod(0o755)


def test_a_file_in_place_of_a_repository_is_one_line(first: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"repository .*/file cannot be written: File exists\."):
        publish(first, tmp_path / "file")
    with pytest.raises(OutputError, match=r"repository .*/file/below cannot be written: Not a directory\."):
        publish(first, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_servers_user_can_read_all_of_it(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        first = written(deployable(tmp_path / "export"), tmp_path / "first")
        second = written(deployable(tmp_path / "export", "onnxruntime", features=True), tmp_path / "maps")
        for each in (first, first):
            publish(each, tmp_path / "repository")
        (first / "small/1/export.json").unlink()
        (first / "small/1/model.onnx").write_bytes(b"other")
        publish(first, tmp_path / "repository")
        publish(second, tmp_path / "maps repository")
    finally:
        os.umask(mask)
    assert versions_of(tmp_path / "repository/small") == [1, 2]
    for repository in (tmp_path / "repository", tmp_path / "maps repository"):
        modes = {path.stat().st_mode & 0o777 for path in (repository, *repository.rglob("*")) if path.is_dir()}
        assert modes == {0o755}
        assert {path.stat().st_mode & 0o777 for path in repository.rglob("*") if path.is_file()} == {0o644}


def test_a_repository_shares_no_file_with_what_was_exported(first: Path, repository: Path, tmp_path: Path) -> None:
    """Else who edits an export in place would change what is served."""
    inodes = {path.stat().st_ino for path in repository.rglob("*") if path.is_file()}
    assert not inodes & {path.stat().st_ino for folder in (first, tmp_path / "export") for path in folder.rglob("*")}

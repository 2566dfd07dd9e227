# SPDX-License-Identifier: Apache-2.0
"""The file of measured tactics: where it is, who may write it, and what becomes of a build where it cannot be used."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
from tensorrt_contract.harness import VERSIONS, printed

from metaformer_export.errors import InputError
from metaformer_export.runtime.tensorrt.building import _save_timings, _Work
from metaformer_export.runtime.tensorrt.environment import Environment
from metaformer_export.runtime.tensorrt.options import EngineOptions
from metaformer_export.runtime.tensorrt.timing_cache import (
    default_path,
    load_into,
    locked,
    place_of,
    replace_file,
    save_from,
)

H100 = Environment((11, 4, 0, 106), "NVIDIA H100 80GB HBM3", 90)


def test_the_timing_cache_has_a_file_for_each_gpu_and_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = default_path(H100)
    assert path == tmp_path / "metaformer-export/timing/nvidia-h100-80gb-hbm3-sm90-tensorrt-11.4.0.106.timing"
    assert default_path(Environment((11, 3), H100.gpu, 90)) != path


def _count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with locked(path):
            count = int(path.read_bytes()) if path.exists() else 0
            time.sleep(0.001)
            replace_file(path, str(count + 1).encode())


def test_parallel_builds_do_not_lose_each_others_measurements(tmp_path: Path) -> None:
    path = tmp_path / "made" / "cache"
    spawned = multiprocessing.get_context("fork")
    processes = [spawned.Process(target=_count_up, args=(path, 20)) for _ in range(3)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    assert path.read_bytes() == b"60"
    assert sorted(each.name for each in path.parent.iterdir()) == ["cache", "cache.lock"]


def test_a_cache_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give another file with --timing-cache"), locked(tmp_path / "file" / "cache"):
        pass


def test_a_timing_cache_that_the_user_named_has_to_be_usable_before_the_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for named, reason in ((tmp_path / "file" / "cache", "cannot be written"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError, match=f"{reason} .*give another file with --timing-cache"):
            place_of(named, H100)
    assert place_of(str(tmp_path / "made" / "cache"), H100) == (tmp_path / "made" / "cache", "")


def test_a_home_that_takes_no_timing_cache_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path, note = place_of(None, H100)
    assert path is None
    assert note.startswith(f"every layer is timed anew: the timing cache {tmp_path}/file/metaformer-export/timing/")
    assert note.endswith("cannot be written (Not a directory); give another file with --timing-cache.")


def test_a_user_without_a_home_builds_without_a_timing_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    note = "every layer is timed anew: there is no home folder for the timing cache; give a file with --timing-cache."
    assert place_of(None, H100) == (None, note)
    assert place_of(tmp_path / "cache", H100) == (tmp_path / "cache", "")


class _Cache:
    """As a builder's: what it holds, and which GPU it is of."""

    def __init__(self, content: bytes) -> None:
        self.gpu, _, self.measured = content.partition(b":")

    def combine(self, others: _Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.measured += others.measured if others.gpu == self.gpu else b""
        return others.gpu == self.gpu

    def serialize(self) -> bytes:
        return self.gpu + b":" + self.measured


class _Config:
    """As TensorRT's own: refuses what it did not write, and what another GPU measured."""

    def __init__(self) -> None:
        self.cache: _Cache | None = None

    def create_timing_cache(self, content: bytes) -> _Cache | None:
        return _Cache(content or b"here:") if b":" in content or not content else None

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache if cache.gpu == b"here" else None
        return self.cache is not None

    def get_timing_cache(self) -> _Cache | None:
        return self.cache


@pytest.mark.parametrize(
    ("content", "said", "measured"),
    [
        (b"here:old", "", b"here:oldnewold"),
        (b"", "", b"here:new"),
        (b"there:old", "is of another GPU; it is made again.", b"here:new"),
        (b"cut off", "is damaged or of another TensorRT; it is made again.", b"here:new"),
    ],
)
def test_a_timing_cache_that_holds_nothing_for_this_builder_is_said_and_made_again(
    content: bytes, said: str, measured: bytes, tmp_path: Path
) -> None:
    path, config = tmp_path / "cache", _Config()
    path.write_bytes(content)
    cache, note = load_into(config, path)
    assert note == (f"the timing cache {path} {said}" if said else "")
    assert config.get_timing_cache() is cache
    cache.measured += b"new"
    save_from(config, path)
    assert path.read_bytes() == measured


def test_a_build_whose_measurements_cannot_be_kept_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = _Config()
    work = _Work(H100, config=config)
    gone = EngineOptions(timing_cache=tmp_path / "folder" / "cache")
    _save_timings(gone, work)
    assert work.messages.notes == ["what the build has measured is not kept: the builder kept no measurements."]
    load_into(config, tmp_path / "folder" / "cache")
    _save_timings(gone, work)
    assert (tmp_path / "folder" / "cache").read_bytes() == b"here:"
    (tmp_path / "file").write_text("")
    _save_timings(EngineOptions(timing_cache=tmp_path / "file" / "cache"), work)
    assert work.messages.notes[1].startswith("what the build has measured is not kept: the timing cache ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        _save_timings(EngineOptions(), work)
    assert [note.partition(":")[0] for note in work.messages.notes[2:]] == ["every layer is timed anew"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_tensorrt_takes_and_gives_the_timing_cache_as_we_ask(version: str, tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        import tensorrt as trt
        from metaformer_export.runtime.tensorrt.timing_cache import load_into
        path = Path({str(tmp_path / "cache")!r})
        config = trt.Builder(trt.Logger()).create_builder_config()
        for content in (b"", b"written"):
            path.write_bytes(content)
            cache, note = load_into(config, path)
            print(type(cache).__name__, config.get_timing_cache() is not None, len(note))
        """
    assert printed(version, code) == ["ITimingCache True 0"] * 2

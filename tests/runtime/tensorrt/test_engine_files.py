# SPDX-License-Identifier: Apache-2.0
"""What happens around an engine without one: versions, machines, messages, Ctrl-C."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from typing import Any

import pytest

from metaformer_export.errors import InputError, MissingDependencyError
from metaformer_export.runtime.tensorrt.cancelling import cancellable
from metaformer_export.runtime.tensorrt.environment import Environment, available, environment, parse_version
from metaformer_export.runtime.tensorrt.hints import HINTS, advised
from metaformer_export.runtime.tensorrt.listening import Messages, Phases
from metaformer_export.runtime.tensorrt.loading import mismatch
from metaformer_export.runtime.tensorrt.options import EngineOptions
from metaformer_export.runtime.tensorrt.told import read_told

H100 = Environment((11, 4, 0, 106), "NVIDIA H100 80GB HBM3", 90)
MADE: dict[str, Any] = {
    "path": "model.plan",
    "source": "model.onnx",
    "batch": [1, 8, 32],
    "version": "11.4.0.106",
    "gpu": H100.gpu,
    "architecture": 90,
    "plugins": ["GlobalFilter"],
    "options": {},
}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("11.4.0.106", (11, 4, 0, 106)), ("10.14.1.48.post1", (10, 14, 1, 48)), ("10.8.0", (10, 8, 0))],
)
def test_versions_are_read_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_version(text) == numbers


def test_without_tensorrt_the_error_says_the_two_ways_to_get_it() -> None:
    assert not available()
    with pytest.raises(MissingDependencyError) as raised:
        environment()
    assert raised.value.exit_code == 3
    assert 'pip install "metaformer-export[tensorrt]"' in str(raised.value)
    assert "docker run --gpus all metaformer-export:latest" in str(raised.value)


def test_an_engine_runs_where_it_was_built() -> None:
    assert mismatch(read_told(MADE), H100) == ""


@pytest.mark.parametrize(
    ("changes", "found", "reason"),
    [
        ({}, Environment((11, 3, 0, 99), H100.gpu, 90), "built by TensorRT 11.4.0.106, here is 11.3.0.99"),
        ({}, Environment(H100.version, "NVIDIA A10", 86), r"NVIDIA H100 80GB HBM3 \(compute capability 9.0\), here is"),
        ({}, Environment(H100.version, "NVIDIA H200", 90), r"here is NVIDIA H200 \(9.0\)"),
        ({"options": {"version_compatible": True}}, Environment((11, 3, 0, 99), H100.gpu, 90), "to run in later 11.x"),
        ({"options": {"version_compatible": True}}, Environment((12, 0, 0, 1), H100.gpu, 90), "here is 12.0.0.1"),
        ({"options": {"hardware_compatible": "ampere_plus"}}, Environment(H100.version, "T4", 75), r"T4 \(7.5\)"),
        (
            {"options": {"hardware_compatible": "same_compute_capability"}},
            Environment(H100.version, "NVIDIA A10", 86),
            "NVIDIA A10",
        ),
    ],
)
def test_an_engine_of_another_machine_is_explained(changes: dict[str, Any], found: Environment, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(mismatch(read_told(MADE | changes), found))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"version_compatible": True}, Environment((11, 5, 0, 1), H100.gpu, 90)),
        ({"hardware_compatible": "ampere_plus"}, Environment(H100.version, "NVIDIA A10", 86)),
        ({"hardware_compatible": "same_compute_capability"}, Environment(H100.version, "NVIDIA H200", 90)),
    ],
)
def test_compatible_engines_run_elsewhere(options: dict[str, Any], found: Environment) -> None:
    assert mismatch(read_told(MADE | {"options": options}), found) == ""


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Could not find any implementation for node {ForeignNode}", "raise --workspace"),
        ("Plugin not found, are the plugin name correct?", "build with --no-plugins"),
        ("Cuda Runtime (out of memory)", "lower the largest batch"),
        ("the engine plan file is generated on an incompatible device", "--hardware-compatible ampere_plus"),
    ],
)
def test_known_errors_come_with_advice(said: str, advice: str) -> None:
    assert advice in advised([said])


def test_every_hint_has_its_own_words() -> None:
    assert len({hint.advice for hint in HINTS}) == len(HINTS) >= 8
    assert advised([]) == "TensorRT gave no reason."
    assert advised(["a", "b", "c", "d", "e"]) == "a; b; c (and 2 more)."


def test_messages_are_kept_once_and_in_order_from_all_threads() -> None:
    messages = Messages()
    threads = [threading.Thread(target=messages.warning, args=(f"layer\n {i % 5}",)) for i in range(50)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(messages.warnings) == [f"layer {i}" for i in range(5)]


def test_progress_is_that_of_the_outermost_phase_and_stops_when_cancelled() -> None:
    told: list[tuple[str, int, int]] = []
    phases = Phases(lambda *each: told.append(each))
    phases.started("build", None, 2)
    phases.started("tactics", "build", 7)
    assert phases.stepped("tactics", 0)
    assert phases.stepped("build", 0)
    phases.cancel()
    assert not phases.stepped("build", 1)
    phases.finished("tactics")
    phases.finished("build")
    assert told == [("build", 0, 2), ("build", 1, 2), ("build", 2, 2), ("build", 2, 2)]


def test_ctrl_c_cancels_a_long_call_and_waits_for_it() -> None:
    cancelled, ended = threading.Event(), threading.Event()

    def job() -> int:
        signal.raise_signal(signal.SIGINT)  # Python hands it to the main thread
        cancelled.wait(timeout=20)
        ended.set()
        return 1

    with pytest.raises(KeyboardInterrupt):
        cancellable(job, cancelled.set)
    assert ended.is_set()


def test_a_long_call_gives_its_result_or_its_error() -> None:
    assert cancellable(lambda: time.sleep(0.3) or 7, lambda: None) == 7
    with pytest.raises(TimeoutError, match="the job's own"):
        cancellable(lambda: (_ for _ in ()).throw(TimeoutError("the job's own")), lambda: None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimization_level": 6}, "--optimization-level takes 0 to 5; got 6"),
        ({"workspace_mib": 0}, "--workspace must be at least 1; got 0"),
        ({"max_tactics": -1}, "--max-tactics must be at least 1; got -1"),
        ({"tiling": "much"}, "--tiling 'much' is not known; use none, fast, moderate or full"),
        ({"hardware_compatible": "all"}, "--hardware-compatible 'all' is not known"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineOptions(**given)


def test_what_a_failed_job_had_is_given_back_without_a_garbage_collection() -> None:
    class Weights:
        """Stands for a builder's memory."""

    held: list[weakref.ref[Weights]] = []

    def job() -> None:
        weights = Weights()
        held.append(weakref.ref(weights))
        raise InputError("made up")

    collects = gc.isenabled()
    gc.disable()
    try:
        with_error = None
        try:
            cancellable(job, lambda: None)
        except InputError as error:
            with_error = str(error), held[0]() is not None
        assert with_error == ("made up", True)
        assert held[0]() is None
    finally:
        if collects:
            gc.enable()

# SPDX-License-Identifier: Apache-2.0
"""Timing: in turn, in the right unit, and bounded."""

from __future__ import annotations

import re
import time

import pytest

from metaformer_export.runtime.bench import interleaved, machine, median, p90, unstable
from metaformer_export.runtime.threads import available_threads


def test_runs_take_turns_and_are_timed_in_milliseconds() -> None:
    calls: list[str] = []

    def run(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    times = interleaved({"a": lambda: run("a", 0.0), "b": lambda: run("b", 0.02)}, rounds=4)
    assert {name: len(each) for name, each in times.items()} == {"a": 8, "b": 8}
    assert calls[:12] == ["a"] * 3 + ["b"] * 3 + ["a"] * 3 + ["b"] * 3, "the first of each is not timed"
    assert 20 <= median(times["b"]) < 200
    assert median(times["a"]) < median(times["b"])


def test_every_turn_is_left_before_the_next_begins() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    interleaved(runs, rounds=2, leave=lambda: calls.append("left"))
    assert calls == [*"aaa", "left", *"bbb", "left"] * 2


def test_it_stops_after_the_time_given() -> None:
    times = interleaved({"a": lambda: time.sleep(0.05)}, rounds=1000, seconds=0.3)
    assert len(times["a"]) == 4


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ({"a": [1.0] * 10, "b": [2.0] * 10}, ""),
        ({"a": [1.0] * 3, "b": [2.0] * 3}, "only 3 runs"),
        ({"a": [1.0] * 10, "b": [2.0] * 8 + [40.0] * 2}, "percentile of b is 20.0 times its median"),
    ],
)
def test_figures_that_disagree_with_each_other_are_called_unstable(times: dict[str, list[float]], why: str) -> None:
    said = unstable(times)
    assert why in said
    assert bool(said) == bool(why)


def test_statistics_and_machine() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert p90([float(i) for i in range(11)]) == pytest.approx(9.0)
    assert available_threads() >= 1
    assert re.search(r", \d+ cores, \w+, \w+ \w+$", machine())

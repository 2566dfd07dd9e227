# SPDX-License-Identifier: Apache-2.0
"""What a dynamic batcher makes of latencies, and how they are measured, against a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from metaformer_export.runtime.triton import curve
from metaformer_export.runtime.triton.curve import Curve, measured


@dataclass
class Machine:
    """Runs batches in no time, and says they took what they are to take."""

    seconds: Callable[[int, int], float]
    """Of a batch of that size, run for the n-th time, from 0."""
    now: float = 0.0
    runs: list[int] = field(default_factory=list)

    def perf_counter(self) -> float:
        return self.now

    def run(self, batch: int) -> None:
        self.now += self.seconds(batch, self.runs.count(batch))
        self.runs.append(batch)


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int, int], float], largest: int) -> tuple[Curve, Machine]:
    machine = Machine(seconds)
    monkeypatch.setattr(curve, "time", SimpleNamespace(perf_counter=machine.perf_counter))
    return measured(machine.run, largest, "a clock"), machine


@pytest.mark.parametrize(
    ("points", "largest", "preferred"),
    [
        ((), 32, ()),
        (((1, 5.0),), 32, ()),
        (((1, 10.0), (2, 20.0), (4, 40.0)), 4, ()),  # ten ms an image, whatever the batch
        (((1, 10.0), (2, 25.0), (4, 80.0)), 4, ()),  # large batches lose
        (((1, 12.0), (2, 20.0), (4, 40.0)), 4, (2,)),  # 1.2 times as many images, no less
        (((1, 11.9), (2, 20.0), (4, 40.0)), 4, ()),
        (((1, 10.0), (2, 11.0), (4, 13.0), (8, 17.0)), 8, (2, 4, 8)),
        (((1, 10.0), (2, 11.0), (4, 13.0), (8, 17.0)), 7, (2, 4)),
        (((1, 10.0), (2, 18.0), (4, 32.0), (8, 56.0)), 8, (4,)),  # 8 is 1.14 times 4; 4 is 1.25 times 1
    ],
)
def test_batches_worth_waiting_for_give_a_fifth_more_images(
    points: tuple[tuple[int, float], ...], largest: int, preferred: tuple[int, ...]
) -> None:
    assert Curve(points, "").preferred(largest) == preferred


@pytest.mark.parametrize(
    ("points", "largest", "wait"),
    [
        ((), 8, 0.0),
        (((1, 10.0), (2, 20.0)), 8, 0.0),
        (((1, 10.0), (2, 11.0), (4, 13.0)), 8, 1.1),
        (((1, 10.0), (2, 19.0), (4, 24.0)), 8, 2.4),
        (((1, 100.0), (2, 110.0)), 8, 5.0),
        (((1, 100.0), (2, 110.0)), 1, 0.0),
    ],
)
def test_a_request_waits_a_tenth_of_the_first_batch_that_pays_and_5_ms_at_most(
    points: tuple[tuple[int, float], ...], largest: int, wait: float
) -> None:
    assert Curve(points, "").wait_ms(largest) == pytest.approx(wait, abs=1e-12)


def test_images_per_second_are_those_of_the_best_batch() -> None:
    assert Curve(((1, 10.0), (2, 16.0), (4, 50.0)), "").images_per_second() == 125.0
    assert Curve(((1, 4.0),), "").images_per_second() == 250.0
    assert Curve((), "").images_per_second() is None


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (13, [1, 2, 4, 8, 13])]
)
def test_batches_double_until_the_largest(monkeypatch: pytest.MonkeyPatch, largest: int, sizes: list[int]) -> None:
    made, machine = timed(monkeypatch, lambda batch, n: 0.010 * batch, largest)
    assert [batch for batch, _ in made.points] == sizes
    assert made.points == tuple((batch, pytest.approx(10.0 * batch)) for batch in sizes)
    assert made.source == "a clock"
    assert machine.runs[: 2 * len(sizes)] == [*sizes, *sizes]


def test_no_batch_follows_one_that_takes_more_than_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    made, machine = timed(monkeypatch, lambda batch, n: 0.3 * batch, 32)
    assert [batch for batch, _ in made.points] == [1, 2, 4]
    assert made.points[-1] == (4, 1200.0)
    assert max(machine.runs) == 4
    slow, machine = timed(monkeypatch, lambda batch, n: 20.0, 32)
    assert slow.points == ((1, 20000.0),)
    assert machine.runs == [1] * 4


def test_the_fastest_run_counts_of_rounds_in_turn_over_four_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of a size is slow, and something disturbs the machine until it has run a while."""
    made, machine = timed(monkeypatch, lambda batch, n: 0.9 if n == 0 else 0.02 * batch if n > 2 else 0.05 * batch, 4)
    assert made.points == ((1, 20.0), (2, 40.0), (4, 80.0))
    rounds = [machine.runs[start : start + 3] for start in range(0, len(machine.runs), 3)]
    assert rounds == [[1, 2, 4]] * len(rounds)
    spent = 3 * 0.9
    assert 4.0 <= machine.now - spent <= 4.0 + 0.14


@pytest.mark.parametrize(("seconds", "rounds"), [(0.001, 4000), (1.0, 4), (5.0, 3)])
def test_there_are_three_rounds_at_least(monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int) -> None:
    _, machine = timed(monkeypatch, lambda batch, n: seconds, 1)
    assert len(machine.runs) - 1 == pytest.approx(rounds, abs=1 if rounds > 10 else 0)


def test_both_parts_are_told_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda batch, n: 1.5)
    monkeypatch.setattr(curve, "time", SimpleNamespace(perf_counter=machine.perf_counter))
    told: list[tuple[str, int]] = []

    def step(name: str) -> AbstractContextManager[None]:
        told.append((name, len(machine.runs)))
        return nullcontext()

    measured(machine.run, 8, "", step)
    assert told == [("first runs", 0), ("rounds", 1)]

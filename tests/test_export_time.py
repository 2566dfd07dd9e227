# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the export reads what the command prints and what the system says of its process."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

PROGRAM = """
import sys, time
def stage(line): print(line, file=sys.stderr, flush=True)
small = b"x" * 10_000_000
stage("start      1.3 s")
large = bytes(range(256)) * 1_000_000
time.sleep(1)
del large
stage("           5.2 s    a step")
stage("note: 3.0 s are no stage")
stage("trace     12.5 s  883 nodes, opset 20")
time.sleep(0.3)
stage("write      0.1 s  folder")
"""


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("export_time")


def test_stages_and_the_peak_of_the_process_are_read(benchmark: ModuleType) -> None:
    heard: list[str] = []
    run = benchmark.measured([sys.executable, "-c", PROGRAM], heard.append)
    assert run.code == 0
    assert run.stages == {"start": 1.3, "trace": 12.5, "write": 0.1}
    assert len(heard) == 5
    assert run.wall_seconds > 0.6
    assert run.cpu_seconds > 0
    assert run.peak_bytes > 256_000_000
    if run.stage_peaks:
        assert run.stage_peaks["trace"] > 256_000_000 > run.stage_peaks["write"]


def test_a_command_that_fails_is_no_row(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    run = benchmark.measured([sys.executable, "-c", "raise SystemExit('why')"])
    assert (run.code, run.stages, run.stderr) == (1, {}, "why\n")
    monkeypatch.setattr(benchmark, "measured", lambda *_: run)
    with pytest.raises(SystemExit, match="hornet_t: exit code 1\nwhy"):
        benchmark.measure("hornet_t", (), 0)


def test_the_table_has_a_column_for_every_stage_that_any_model_had(benchmark: ModuleType) -> None:
    def row(model: str, stages: dict[str, float], peaks: dict[str, int]) -> object:
        return benchmark.Row(model, 883, 100_000_000, 20.0, 30.0, stages, 250_000_000, 2.5, peaks)

    report = benchmark.Report("2026-11-21", "a machine", 2, {"torch": "2"}, ("--fp16",), 323_000_000)
    report.rows += [
        row("one", {"trace": 5.0, "write": 0.1}, {"trace": 90_000_000, "write": 0}),
        row("other", {"trace": 6.0, "parity": 3.0}, {}),
    ]
    first, second = benchmark.markdown(report).splitlines()[-2:]
    assert first == "| one | 883 | 100 | 20.0 | 30.0 | 250 | 2.5x | 5.0 (90) | 0.1 (0) |  |"
    assert second == "| other | 883 | 100 | 20.0 | 30.0 | 250 | 2.5x | 6.0 |  | 3.0 |"
    assert "`metaformer-export --model NAME --fp16`" in benchmark.markdown(report)

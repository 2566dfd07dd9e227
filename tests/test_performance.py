# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic, and that the documents show the committed figures. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import click
import pytest


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    return importlib.import_module("summary")


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    return importlib.import_module("scaling")


def row(candidate: str, ms: float | None, *, ours: bool = False, model: str = "m", batch: int = 1) -> dict[str, object]:
    return {
        "model": model, "resolution": "224x224", "batch": batch, "candidate": candidate, "runtime": "r",
        "precision": "fp32", "ours": ours, "runs": 30, "median_ms": ms, "p90_ms": ms, "over_portable": None,
        "max_error": 1e-6, "rms_error": 1e-7, "failure": "" if ms else "it broke",
    }  # fmt: skip


ROWS = [
    row("portable in ONNX Runtime", 20.0, ours=True),
    row("--target openvino --bf16", 10.0, ours=True),
    row("eager", 60.0),
    row("torch.compile", 30.0),
    row("torch.compile, bf16", None),
    row("torch export in ONNX Runtime", 25.0),
    row("torch export in OpenVINO, bf16", 12.0),
]
REPORT = {"date": "2026-11-21", "machine": "a machine", "threads": 2, "rounds": 30, "versions": {"torch": "2"}}


def test_ratios_are_of_medians_and_of_those_that_hold_parity(summary: ModuleType) -> None:
    (found,) = summary.ratios(ROWS).values()
    assert found == {
        "portable over torch's export, both in ONNX Runtime": 1.25,
        "portable in ONNX Runtime over torch.compile": 1.5,
        "best over best peer": 1.2,
        "best over eager": 6.0,
    }
    failed = [each | {"median_ms": None} if each["candidate"] == "--target openvino --bf16" else each for each in ROWS]
    (found,) = summary.ratios(failed).values()
    assert found["best over best peer"] == 0.6


def test_the_mean_of_ratios_is_geometric_and_each_batch_has_its_own(summary: ModuleType) -> None:
    assert summary.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    slower = [each | {"model": "n", "median_ms": 80.0} for each in ROWS if each["candidate"] == "eager"]
    ours = [each | {"model": "n", "median_ms": 5.0} for each in ROWS if each["candidate"] == "--target openvino --bf16"]
    rows = [*ROWS, *slower, *ours, *(each | {"batch": 8} for each in ROWS)]
    table = summary.ratio_table(REPORT | {"rows": rows})
    assert "| geometric mean |  | 1 | **1.25x** | **1.50x** | **4.38x** | **9.80x** |" in table
    assert "| geometric mean |  | 8 | **1.25x** | **1.50x** | **1.20x** | **6.00x** |" in table


def test_a_peer_that_fails_says_so(summary: ModuleType) -> None:
    report = REPORT | {"rows": ROWS}
    assert "| m | 1 | 20.0 | **10.0** | 60.0 | 30.0 | - | 25.0 | 12.0 |" in summary.median_table(report)
    assert "- m, torch.compile, bf16: it broke" in summary.median_table(report)
    assert "| m | 224x224 | 1 | torch.compile, bf16 | - | - | - | it broke |" in summary.markdown(report)


def test_growth_is_the_exponent_of_a_power_law(scaling: ModuleType, tmp_path: Path) -> None:
    assert scaling.exponent({1: 3.0, 2: 6.0, 8: 24.0}) == pytest.approx(1.0)
    assert scaling.exponent({10: 5.0, 20: 20.0}) == pytest.approx(2.0)
    assert scaling.exponent({10: 5.0}) is None
    name = scaling.SHOWN[0]
    own = [row(name, 10.0 * batch, ours=True, batch=batch) for batch in (1, 2, 4)]
    larger = row(name, 40.0, ours=True) | {"resolution": "448x448"}
    rows = [scaling.Row(**each) for each in (*own, larger)]
    report = scaling.Report(**REPORT, rows=rows)
    assert scaling.by_batch(rows, "m", name) == {1: 10.0, 2: 20.0, 4: 40.0}
    assert scaling.by_side(rows, "m", name) == {224: 10.0, 448: 40.0}
    table = scaling.markdown(report)
    assert f"| m | {name} | 10.0 (100/s) | 20.0 (100/s) | 40.0 (100/s) | 1.00 |" in table
    assert f"| m | {name} | 10.0 | 40.0 | 1.00 |" in table
    scaling.draw(report, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text("utf-8").count("<path") > 20


def test_the_documents_show_the_committed_figures() -> None:
    document = importlib.import_module("document")
    shown = 0
    for path in document.DOCUMENTS:
        text = path.read_text("utf-8")
        assert document.filled(text) == text, f"{path.name}: run benchmarks/document.py"
        shown += text.count("<!-- begin ")
    assert shown >= 6


def test_rows_are_added_to_those_of_the_same_day_and_setup_only(tmp_path: Path) -> None:
    portable, saved = importlib.import_module("portable"), importlib.import_module("saved")
    out = tmp_path / "figures.json"
    rows = [row("eager", 60.0, model=model) for model in ("hornet_t", "focalnet_t")]
    out.write_text(json.dumps({**REPORT, "rows": rows}), "utf-8")
    assert saved.rows_of_others(out, portable.Report(**REPORT), ("focalnet_t",)) == rows[:1]
    for change in ({"date": "2026-11-22"}, {"threads": 4}, {"versions": {"torch": "3"}}):
        with pytest.raises(click.UsageError, match=f"of other {next(iter(change))}"):
            saved.rows_of_others(out, portable.Report(**{**REPORT, **change}), ())

# SPDX-License-Identifier: Apache-2.0
"""docs/int8.md shows what each precision costs on trained models; each row can be made again (make test-all)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from trained_models import TRAINED, digits

from metaformer_export.options import CalibrationOptions

ROOT = Path(__file__).parent.parent
NAMES = [each.name for each in TRAINED]


def judge(rows: dict[str, dict[str, Any]]) -> None:
    """The limits of docs/int8.md, for the rows of one model by way; top-1 in percent."""
    eager = rows["eager"]["top1"]
    assert eager >= 95
    assert rows["FP32"]["top1"] == rows["FP16"]["top1"] == eager
    assert rows["FP32"]["rms"] < 1e-5
    assert 1e-5 < rows["FP16"]["rms"] < 5e-3
    assert rows["BF16"]["top1"] >= eager - 0.25
    for way in ("INT8 CPU", "INT8 for ONNX Runtime", "INT8 TensorRT"):
        assert rows[way]["top1"] >= eager - 0.5
        assert 1e-3 < rows[way]["rms"] < 0.03
    for way in ("INT8 CPU", "INT8 for ONNX Runtime"):
        assert rows[way]["top1"] >= rows["naive INT8"]["top1"]
        assert rows[way]["rms"] < rows["naive INT8"]["rms"]


def test_the_committed_figures_hold() -> None:
    saved = json.loads((ROOT / "docs" / "performance" / "accuracy.json").read_text("utf-8"))
    rows = {name: {row["way"]: row for row in saved["rows"] if row["model"] == name} for name in NAMES}
    assert saved["images"] == 454
    for name in NAMES:
        judge(rows[name])
    exact = [rows[name]["naive INT8, exact sums"]["rms"] > rows[name]["INT8 TensorRT"]["rms"] for name in NAMES]
    assert sum(exact) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_row_can_be_made_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for folder, part in zip(("train", "test"), digits(), strict=True):
        part.write(tmp_path / folder)
    trained = next(each for each in TRAINED if each.name == name)
    made = _benchmark().measure(trained, tmp_path, CalibrationOptions())
    judge({row.way: vars(row) for row in made})


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy_benchmark", ROOT / "benchmarks" / "accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

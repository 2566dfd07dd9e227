# SPDX-License-Identifier: Apache-2.0
"""docs/coverage.md has a row for every variant, and each row can be made again. The making is for make test-all."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from metaformer_export.models import registry
from metaformer_export.runtime.parity import THRESHOLDS

ROOT = Path(__file__).parent.parent
NAMES = [variant.name for _, variant in registry.variants()]


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_variant_has_a_row_and_every_row_passes() -> None:
    rows = json.loads((ROOT / "docs" / "coverage.json").read_text("utf-8"))["rows"]
    assert [row["name"] for row in rows] == NAMES
    table = (ROOT / "docs" / "coverage.md").read_text("utf-8")
    for row, (_, variant) in zip(rows, registry.variants(), strict=True):
        assert row["failures"] == []
        assert row["parameters"] == variant.parameters
        assert row["fp32_max"] <= THRESHOLDS["fp32"].max_rel
        assert row["fp16_max"] <= THRESHOLDS["fp16"].max_rel
        assert row["alone"] <= 1e-5
        assert (row["clusters_fp32"] is not None) == ("BalancedClustering" in variant.mixer_ops)
        assert f"\n| {variant.short_name} | {variant.parameters / 1e6:.1f} M | {row['nodes']} |" in table


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_row_can_be_made_again(name: str) -> None:
    row = _benchmark().row_in_a_process(name)
    assert row.failures == ()
    assert 0 < row.fp32_max <= 1e-4
    assert 0 < row.fp16_max <= 0.05
    assert row.alone <= 1e-5
    assert row.nodes > 50

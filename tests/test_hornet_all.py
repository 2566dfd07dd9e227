# SPDX-License-Identifier: Apache-2.0
"""Every HorNet, through the command, with and without stage maps. Minutes: run by make test-all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaformer_export.cli import main
from metaformer_export.models import hornet

VARIANTS = [variant.short_name for variant in hornet.FAMILY.variants]


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_exported_in_fp16_and_proved(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", name, "--fp16", "--json"]) == 0
    parity = json.loads(capsys.readouterr().out)["parity"]
    assert parity["passed"] is True
    assert parity["outputs"][0]["rms_rel"] <= 0.01
    assert parity["outputs"][0]["cosine"] >= 0.9999
    assert parity["outputs"][0]["top1_agreement"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hornet_s", "hornet_s_gf"])
def test_stage_maps_at_a_size_that_is_not_square(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", name, "--features", "--resolution", "256x320", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["folder"] == f"build/{name}-features-256x320-fp32"
    assert [output["name"] for output in summary["parity"]["outputs"]] == ["stage0", "stage1", "stage2", "stage3"]
    assert max(output["max_rel"] for output in summary["parity"]["outputs"]) <= 1e-4

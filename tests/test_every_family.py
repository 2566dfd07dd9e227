# SPDX-License-Identifier: Apache-2.0
"""One small model of every family through the whole command: load, trace, lower, convert, prove, time, write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from small_models import KINDS, SIDES

from metaformer_export.cli import main
from metaformer_export.export.ops.mixer_op import DOMAIN
from metaformer_export.models import registry
from metaformer_export.models.family import Family, SizeRule, Variant

ONE_EACH = (
    "metaformer_ppaa",
    "caformer",
    "hornet_gf",
    "focalnet_large_fl4",
    "boat_swin",
    "boat_cswin",
    "acmix_swin",
    "acmix_resnet",
)


def _small(family: Family) -> Family:
    kinds = [kind for kind in ONE_EACH if KINDS[kind][0] is family]
    ops = family.variants[1].mixer_ops if len(family.variants) > 1 else ()
    variants = [
        Variant(f"{kind}_test", f"{kind}_test", KINDS[kind][1], 0, mixer_ops=ops, size_rule=SizeRule(32))
        for kind in kinds
    ]
    return replace(family, variants=(*variants, *family.variants))


def test_every_family_is_here() -> None:
    assert [KINDS[kind][0].name for kind in ONE_EACH] == [family.name for family in registry.FAMILIES]


@pytest.mark.parametrize("kind", ONE_EACH)
def test_a_small_model_is_exported_and_proved(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "FAMILIES", tuple(_small(family) for family in registry.FAMILIES))
    height, width = SIDES.get(kind, (64, 96))
    # Of 1000 random classes the first two can be nearer than float16 tells apart.
    arguments = ["--model", f"{kind}_test", "--num-classes", "10", "--fp16", "--resolution", f"{height}x{width}"]
    code = main([*arguments, "--output", str(tmp_path / "out")])
    assert code == 0, capsys.readouterr().err
    parity = json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))
    judged = (parity["same_clusters"] or parity["outputs"])[0]
    assert parity["passed"] is True
    assert 0 < judged["rms_rel"] <= 0.01
    clusters = parity["cluster_agreement"]
    assert (clusters is None) == ("boat" not in kind)
    if clusters:
        assert 0.5 <= clusters["mean"] <= 1
        assert len(clusters["nodes"]) >= 3
    _, variant = registry.find(f"{kind}_test")
    plugin = tmp_path / "out" / "model.plugin.onnx"
    assert plugin.exists() == bool(variant.mixer_ops)
    if plugin.exists():
        nodes = onnx.load(plugin).graph.node
        assert {node.op_type for node in nodes if node.domain == DOMAIN} == set(variant.mixer_ops)
    bench = json.loads((tmp_path / "out" / "bench.json").read_text("utf-8"))
    verdicts = {(each["runtime"], each["precision"]): each["passed"] for each in bench["candidates"]}
    assert verdicts == {
        ("onnxruntime-cpu", "fp32"): True,
        ("onnxruntime-cpu", "fp16"): True,
        ("openvino-cpu", "fp32"): True,
        ("openvino-cpu", "fp16"): False,  # OpenVINO has none
    }, bench["candidates"]
    assert (bench["choice"]["runtime"], bench["choice"]["precision"]) == ("onnxruntime-cpu", "fp16")
    portable = onnx.load(tmp_path / "out" / "model.onnx")
    assert {entry.domain for entry in portable.opset_import} == {""}

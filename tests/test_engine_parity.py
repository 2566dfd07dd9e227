# SPDX-License-Identifier: Apache-2.0
"""One small model of every family as an engine, where TensorRT and a GPU are; parity.sh runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import KINDS, SIDES

from metaformer_export.cli import main
from metaformer_export.models import registry
from metaformer_export.models.family import Family, SizeRule, Variant
from metaformer_export.runtime.tensorrt.environment import available

pytestmark = pytest.mark.skipif(not available(), reason="an engine needs TensorRT and a GPU")

ONE_EACH = ("poolformer", "caformer", "hornet_gf", "focalnet", "boat_swin", "boat_cswin", "acmix_swin", "acmix_resnet")


def _with_small_variant(family: Family, kind: str) -> Family:
    of, config = KINDS[kind]
    if of is not family:
        return family
    ops = family.variants[1].mixer_ops if len(family.variants) > 1 else ()
    small = Variant(f"{kind}_test", f"{kind}_test", config, 0, mixer_ops=ops, size_rule=SizeRule(32))
    return replace(family, variants=(small, *family.variants))


@pytest.mark.parametrize("arithmetic", ["fp32", "tf32", "fp16"])
@pytest.mark.parametrize("kind", ONE_EACH)
def test_an_engine_of_a_small_model_is_built_and_proved(
    kind: str,
    arithmetic: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    families = tuple(_with_small_variant(family, kind) for family in registry.FAMILIES)
    monkeypatch.setattr(registry, "FAMILIES", families)
    height, width = SIDES.get(kind, (64, 96))
    # Of 1000 random classes the first two can be nearer than float16 tells apart.
    arguments = [
        "--model",
        f"{kind}_test",
        "--num-classes",
        "10",
        "--resolution",
        f"{height}x{width}",
        "--batch",
        "1:3:4",
    ]
    precision = "fp16" if arithmetic == "fp16" else "fp32"
    arguments += {"fp32": ["--no-tf32"], "tf32": [], "fp16": ["--fp16"]}[arithmetic]
    code = main([*arguments, "--target", "tensorrt", "--output", str(tmp_path / "out")])
    assert code == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "model.plan").stat().st_size > 10_000
    bench = json.loads((tmp_path / "out" / "bench.json").read_text("utf-8"))
    verdicts = {(each["runtime"], each["precision"]): each["passed"] for each in bench["candidates"]}
    assert verdicts[("tensorrt", precision)] is True, bench["candidates"]
    proof = json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))["engine"]
    assert proof["precision"] == arithmetic
    assert len(proof["between"]) == 1
    # The file as it lies there, in a session of its own.
    assert main(["parity", str(tmp_path / "out"), "--file", "model.plan"]) == 0, capsys.readouterr().err

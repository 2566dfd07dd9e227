# SPDX-License-Identifier: Apache-2.0
"""Exports as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import support
import torch
from PIL import Image

from metaformer_export import create_model, load_engine
from metaformer_export.cli import main
from metaformer_export.models.checkpoints import sha256_of

FAST = pytest.mark.usefixtures("small_models")


@FAST
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_export_is_whole_proved_and_timed(tmp_path: Path, monkeypatch, capsys, precision: str) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [] if precision == "fp32" else [f"--{precision}"]
    assert main(["--model", "hornet_test_gf", "--json", "--batch", "1:2:8", "--target", "onnx", *flags]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    folder = tmp_path / "build" / f"hornet_test_gf-{precision}"
    assert summary["folder"] == f"build/hornet_test_gf-{precision}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "bench.json",
        "manifest.json",
        "model.onnx",
        "model.plugin.onnx",
        "parity.json",
        "report.html",
        "triton",
    ]
    assert support.files_below(tmp_path / "build") == sorted(
        [folder.name, *(f"{folder.name}/{name}" for name in support.files_below(folder))]
    )

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "passed"
    for name, entry in manifest["outputs"].items():
        assert entry["sha256"] == sha256_of(folder / name)
        assert entry["bytes"] == (folder / name).stat().st_size
    kept = manifest["precision"]["kept_in_fp32"]["model.onnx"]
    assert len(kept) == (0 if precision == "fp32" else 2)
    assert all("GlobalFilter" in each["reason"] for each in kept)

    parity = json.loads((folder / "parity.json").read_text())
    assert parity["passed"] is True
    assert (parity["precision"], parity["images"], parity["batches"]) == (precision, 6, [1, 3])
    (output,) = parity["outputs"]
    assert output["name"] == "logits"
    assert output["top1_agreement"] == 1.0
    assert output["rms_rel"] <= {"fp32": 1e-5, "fp16": 1e-2, "bf16": 4e-2}[precision]
    assert output["cosine"] >= {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.999}[precision]

    bench = json.loads((folder / "bench.json").read_text())
    timed = {(row["runtime"], row["precision"], row["batch"]) for row in bench["results"]}
    expected = {"fp32"} if precision == "bf16" else {"fp32", precision}
    assert timed == {
        (r, p, b) for b in (1, 2) for r, ps in (("eager", {"fp32"}), ("onnxruntime-cpu", expected)) for p in ps
    }
    assert {each["runtime"] for each in bench["candidates"]} == {"onnxruntime-cpu"}
    assert all(0 < row["median_ms"] <= row["p90_ms"] for row in bench["results"])
    if precision == "bf16":
        assert bench["speedup_over_eager"] is None
    else:
        assert bench["speedup_over_eager"] > 0
    assert "random (seed 0), every branch alive" in captured.err
    assert ("speed shows on a GPU" in captured.err) is (precision == "fp16")


@FAST
def test_a_checkpoint_is_exported_as_it_is(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    model = create_model("hornet_test", num_classes=5, seed=9)
    torch.save({"model": model.state_dict()}, "mine.pth")
    arguments = ["--model", "hornet_test", "--checkpoint", "mine.pth", "--resolution", "64x96", "--output", "here"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("here: parity holds, model.onnx ")
    assert "random" not in captured.err
    x = support.image(4, 3, 64, 96)
    (got,) = load_engine("here")(x)
    with torch.inference_mode():
        assert support.relative_error(got, model(torch.from_numpy(x)).numpy()) <= 1e-4
    manifest = json.loads(Path("here/manifest.json").read_text())
    assert manifest["inputs"]["checkpoint"] == {"file": "mine.pth", "sha256": sha256_of(Path("mine.pth"))}
    assert manifest["model"]["num_classes"] == 5
    assert str(tmp_path) not in Path("here/model.onnx").read_bytes().decode("latin-1")


@FAST
def test_features_and_the_users_images(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i in range(2):
        noise = np.random.RandomState(i).randint(0, 255, (90, 70, 3), np.uint8)
        Image.fromarray(noise).save(f"photos/{i}.png")
    assert main(["--model", "hornet_test_gf", "--features", "--resolution", "96", "--images", "photos", "--fp16"]) == 0
    folder = Path("build/hornet_test_gf-features-96x96-fp16")
    parity = json.loads((folder / "parity.json").read_text())
    assert [output["name"] for output in parity["outputs"]] == ["stage0", "stage1", "stage2", "stage3"]
    assert parity["images"] == 2
    shapes = [
        [d.dim_value for d in o.type.tensor_type.shape.dim[1:]] for o in onnx.load(folder / "model.onnx").graph.output
    ]
    assert shapes == [[16, 24, 24], [32, 12, 12], [64, 6, 6], [128, 3, 3]]
    capsys.readouterr()


@FAST
def test_a_detectors_neck_is_exported_with_its_backbone(tmp_path: Path, monkeypatch, capsys) -> None:
    """A global filter in the neck alone is reason enough for the plugin file."""
    monkeypatch.chdir(tmp_path)
    detector = create_model("hornet_test", features=True, neck="horfpn_gf", seed=3)
    torch.save({"state_dict": {**detector.state_dict(), "rpn_head.rpn_reg.bias": torch.ones(4)}}, "detector.pth")
    arguments = ["--features", "--neck", "horfpn_gf", "--resolution", "64x96", "--checkpoint", "detector.pth"]
    assert main(["--model", "hornet_test", *arguments, "--fp16", "--json"]) == 0
    captured = capsys.readouterr()
    assert "Not part of the backbone and the neck, and left out: rpn_head." in captured.err
    summary = json.loads(captured.out)
    assert (summary["folder"], summary["neck"]) == ("build/hornet_test-features-horfpn_gf-64x96-fp16", "horfpn_gf")
    folder = Path(summary["folder"])
    assert "model.plugin.onnx" in support.files_below(folder)
    outputs = onnx.load(folder / "model.onnx").graph.output
    assert [output.name for output in outputs] == ["p2", "p3", "p4", "p5", "p6"]
    shapes = [[d.dim_value for d in output.type.tensor_type.shape.dim[1:]] for output in outputs]
    assert shapes == [[256, 16, 24], [256, 8, 12], [256, 4, 6], [256, 2, 3], [256, 1, 2]]
    assert [each["name"] for each in summary["parity"]["outputs"]] == [output.name for output in outputs]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"]["neck"] == "horfpn_gf"
    assert manifest["precision"]["layers"]["model.onnx"]["neck.fpn_convs"]["fp32"] > 0
    kept = {each["module"] for each in manifest["precision"]["kept_in_fp32"]["model.onnx"]}
    assert kept == {f"neck.fpn_convs.{i}.dwconv" for i in range(4)}
    assert "hornet_test + horfpn_gf, fp16, 64x96" in (folder / "report.html").read_text()


@FAST
def test_failed_parity_is_exit_code_1_and_the_files_are_kept_and_marked(tmp_path: Path, monkeypatch, capsys) -> None:
    """A graph with one wrong weight must not get through."""
    from metaformer_export import pipeline

    honest = pipeline.lower_all

    def spoilt(traced, forms, lowering):
        lowered = honest(traced, forms, lowering)
        weight = lowered[0].model.graph.initializers["stages.1.0.gnconv.proj_out.weight"]
        weight.const_value = type(weight.const_value)(weight.const_value.numpy() * 1.01)
        return lowered

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "lower_all", spoilt)
    assert main(["--model", "hornet_test"]) == 1
    captured = capsys.readouterr()
    assert "PARITY FAILED" in captured.out
    assert "parity failed: logits: max_rel" in captured.err
    manifest = json.loads(Path("build/hornet_test-fp32/manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert json.loads(Path("build/hornet_test-fp32/parity.json").read_text())["passed"] is False
    bench = json.loads(Path("build/hornet_test-fp32/bench.json").read_text())
    assert bench["choice"] is None
    # A percent is within what bfloat16 may be off, but of a failed export nothing is chosen.
    fp32 = [each for each in bench["candidates"] if each["precision"] == "fp32"]
    assert [(each["runtime"], each["passed"]) for each in fp32] == [("onnxruntime-cpu", False), ("openvino-cpu", False)]


@FAST
def test_values_outside_float16_are_reported_and_kept(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    state = create_model("hornet_test").state_dict()
    state["stages.2.0.gnconv.pws.2.weight"] *= 3e5
    torch.save(state, "loud.pth")
    assert main(["--model", "hornet_test", "--checkpoint", "loud.pth", "--fp16", "--io", "fp16"]) == 0
    assert "leave float16's range on these images" in capsys.readouterr().err
    folder = Path("build/hornet_test-fp16")
    found = json.loads((folder / "parity.json").read_text())["out_of_range"]
    assert found[0]["module"] == "stages.2.0.gnconv.pws.2"
    assert found[0]["max_abs"] > 65504
    kept = json.loads((folder / "manifest.json").read_text())["precision"]["kept_in_fp32"]["model.onnx"]
    assert "stages.2.0.gnconv.pws.2" in {each["module"] for each in kept}
    types = {value.type.tensor_type.elem_type for value in onnx.load(folder / "model.onnx").graph.input}
    assert types == {onnx.TensorProto.FLOAT16}


@FAST
def test_json_stays_json_where_an_output_is_not_a_number(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    state = create_model("hornet_test").state_dict()
    state["head.weight"] *= 1e38  # eager's own logits are infinite
    torch.save(state, "huge.pth")
    assert main(["--model", "hornet_test", "--checkpoint", "huge.pth", "--json"]) == 1
    summary = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert summary["parity"]["passed"] is False
    assert summary["parity"]["failures"][0] == "logits: eager's own output is not finite"
    assert summary["parity"]["outputs"][0]["max_abs"] is None


@FAST
def test_replacing_an_export_of_other_weights_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(create_model("hornet_test").state_dict(), "mine.pth")
    small = ["--model", "hornet_test", "--resolution", "32"]
    assert main([*small, "--checkpoint", "mine.pth"]) == 0
    capsys.readouterr()
    assert main(small) == 0
    assert "held an export with other weights (mine.pth), checkpoint (" in capsys.readouterr().err
    assert main(small) == 0
    assert "it is replaced" not in capsys.readouterr().err

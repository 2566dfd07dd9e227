# SPDX-License-Identifier: Apache-2.0
"""--int8 and calibrate, as a user types them, on the small trained HorNet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import files_below
from trained_models import TRAINED, digits

from metaformer_export import calibrating
from metaformer_export.artifacts import BenchRow
from metaformer_export.calibration.plan import PrecisionPlan, read_plan
from metaformer_export.cli import main
from metaformer_export.runtime import openvino
from metaformer_export.runtime.engine import load_engine
from metaformer_export.runtime.saturation import weight_bits
from metaformer_export.timing import gain_of

HORNET = next(each for each in TRAINED if each.name == "hornet")
MODEL = ["--model", HORNET.model, "--checkpoint", str(HORNET.weights), "--resolution", str(HORNET.side)]
MODEL += ["--set", "width=8", "--set", "depths=1,1,2,1"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and test images, a folder for each digit."""
    folder = tmp_path_factory.mktemp("digits")
    for name, part in zip(("train", "test"), digits(), strict=True):
        part.write(folder / name)
    return folder


@pytest.fixture(scope="module")
def exported(trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "hornet"
    assert main([*MODEL, "--int8", "--calib-data", str(trees / "train"), "--force", "--output", str(folder)]) == 0
    return folder


def said_by(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    code = main([str(each) for each in arguments])
    return code, capsys.readouterr().err


def test_the_folder_has_both_graphs_the_ranges_and_the_reasons(exported: Path) -> None:
    names = {"model.onnx", "model.tensorrt.onnx", "calibration.json", "parity.json", "bench.json", "manifest.json"}
    assert names <= set(files_below(exported))
    manifest = json.loads((exported / "manifest.json").read_text("utf-8"))
    assert names - {"manifest.json"} <= set(manifest["outputs"])
    assert manifest["precision"]["requested"] == "int8"
    layers = manifest["precision"]["layers"]
    assert sum(group.get("int8", 0) for group in layers["model.onnx"].values()) == 69
    assert sum(group.get("fp16", 0) for group in layers["model.tensorrt.onnx"].values()) > 50
    kept = manifest["precision"]["kept_in_fp32"]["model.onnx"]
    assert {each["module"] for each in kept} == {"downsample_layers.0.0", "stages.0.0.gnconv.dwconv"}
    assert "three input channels" in next(each["reason"] for each in kept if each["module"] == "downsample_layers.0.0")
    parity = json.loads((exported / "parity.json").read_text("utf-8"))
    assert parity["passed"]
    assert "not calibrated with" in parity["image_source"]
    assert 1e-3 < parity["outputs"][0]["rms_rel"] < 0.05
    assert any("model.tensorrt.onnx" in method for method in parity["methods"])


def test_ranges_are_used_again_only_where_nothing_changed(
    exported: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [*MODEL, "--int8", "--force", "--output", exported]
    data = ["--calib-data", trees / "train"]
    before = json.loads((exported / "calibration.json").read_text("utf-8"))
    _, said = said_by(capsys, *again, *data)
    assert "again: the same graph, weights, images and settings" in said
    assert json.loads((exported / "calibration.json").read_text("utf-8")) == before
    elsewhere = [*MODEL, "--int8", "--force", "--output", tmp_path / "given"]
    _, said = said_by(capsys, *elsewhere, "--calibration", exported / "calibration.json")
    assert "ranges of" in said
    written = (tmp_path / "given" / "model.onnx").read_bytes()
    assert len(written) > 100_000
    _, said = said_by(capsys, *elsewhere, *data, "--calib-method", "minmax")
    assert "109 tensors on 256 images, minmax" in said


def test_onnx_runtime_alone_has_a_graph_and_ranges_of_its_own(
    exported: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--calib-data", trees / "train", "--calib-size", "32"]
    own = [*MODEL, "--int8", "--force", "--target", "onnx", "--output", tmp_path / "own"]
    code, said = said_by(capsys, *own, "--calibration", exported / "calibration.json")
    assert code == 2
    assert "is of another graph (hornet_tiny_7x7) than this hornet_tiny_7x7 (--target onnx and openvino" in said
    assert not (tmp_path / "own").exists()
    assert said_by(capsys, "calibrate", *MODEL, *few, "--target", "onnx", "--output", tmp_path / "found")[0] == 0
    code, said = said_by(capsys, *own, "--calibration", tmp_path / "found" / "calibration.json")
    assert code == 0, said
    manifest, plain = (json.loads((each / "manifest.json").read_text("utf-8")) for each in (tmp_path / "own", exported))
    assert manifest["graphs"]["model.onnx"]["form"] == "int8"
    assert plain["graphs"]["model.onnx"]["form"] == "portable"
    kinds = [
        Counter(node.op_type for node in onnx.load(each / "model.onnx").graph.node)
        for each in (tmp_path / "own", exported)
    ]
    assert [each["MatMul"] for each in kinds] == [11, 0]  # the MLPs of five blocks, and the first proj_in
    for folder, told in ((tmp_path / "own", manifest), (exported, plain)):
        for name, graph in told["graphs"].items():
            gelus = [node for node in onnx.load(folder / name).graph.node if node.op_type == "Gelu"]
            by_tanh = [node for node in gelus if any(each.s == b"tanh" for each in node.attribute)]
            assert len(graph["gelus_by_tanh"]) == len(by_tanh) <= len(gelus) == 5
            assert all(module.startswith("stages.") for module in graph["gelus_by_tanh"])
    bench = json.loads((tmp_path / "own" / "bench.json").read_text("utf-8"))
    assert {row["precision"] for row in bench["results"] if row["runtime"] == "onnxruntime-cpu"} == {"fp32", "int8"}
    parity = json.loads((tmp_path / "own" / "parity.json").read_text("utf-8"))
    assert parity["passed"]
    assert 1e-3 < parity["outputs"][0]["rms_rel"] < 0.05
    assert said_by(capsys, "parity", tmp_path / "own", "--checkpoint", HORNET.weights, "--layers")[0] == 0


def test_ranges_of_another_model_are_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    focal = next(each for each in TRAINED if each.name == "focalnet")
    model = ["--model", focal.model, "--checkpoint", focal.weights, "--resolution", focal.side]
    model += ["--set", "width=12", "--set", "depths=1,1,2,1", "--output", tmp_path / "none"]
    code, said = said_by(capsys, *model, "--int8", "--calibration", exported / "calibration.json")
    assert code == 2
    assert "is of another graph (hornet_tiny_7x7) than this focalnet_tiny_srf" in said
    assert not (tmp_path / "none").exists()


def test_eight_bits_are_as_right_as_eager(exported: Path, trees: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = ["eval", exported, "--data", trees / "test", "--checkpoint", HORNET.weights, "--json"]
    for graph in (["--runtime", "onnxruntime"], ["--file", "model.tensorrt.onnx"]):
        assert main([str(each) for each in (*arguments, *graph)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["images"] == 454
        assert found["top1"] >= found["eager_top1"] - 0.5
        assert found["agreement"] >= 99
        assert 1e-3 < found["rms_rel"] < 0.04
    code, said = said_by(capsys, *arguments, "--file", "model.plan")
    assert code == 2
    assert "holds model.onnx, model.tensorrt.onnx" in said


@pytest.mark.slow
def test_openvino_computes_in_eight_bits(exported: Path, trees: Path, tmp_path: Path) -> None:
    folder = tmp_path / "openvino"
    target = ["--target", "openvino", "--int8", "--force", "--output", str(folder)]
    assert main([*MODEL, *target, "--calib-data", str(trees / "train"), "--calib-size", "64"]) == 0
    session = load_engine(folder, runtime="openvino")
    assert isinstance(session, openvino.Session)
    layers = json.loads((folder / "manifest.json").read_text())["precision"]["layers"]["model.onnx"]
    assert session.executed["u8"] == sum(group.get("int8", 0) for group in layers.values()) == 37
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    (got,), (other,) = session(x), load_engine(exported, runtime="onnxruntime")(x)
    assert np.sqrt(((got - other) ** 2).mean()) < 0.1 * other.std()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--int8"], "needs images to calibrate with, which random data cannot replace: --calib-data DIR"),
        (["--calib-data", "x"], "go with --int8"),
        (["--fp16", "--force"], "go with --int8"),
        (["--int8", "--bf16", "--calib-data", "x"], "--bf16 and --int8 exclude each other"),
        (["--int8", "--calib-data", "x", "--calibration", "y"], "exclude each other"),
        (["--int8", "--calib-data", "nowhere"], "data folder nowhere does not exist"),
        (["--int8", "--calib-data", "x", "--opset", "18"], "--int8 needs opset 19"),
        (["--int8", "--calib-data", "x", "--calib-size", "0"], "--calib-size must be at least 1"),
        (["--int8", "--calibration", "nowhere.json"], "nowhere.json cannot be read"),
        (["--precision-plan", "x.toml"], "goes with --int8 and --fp16"),
        (["--fp16", "--precision-plan", "x.toml"], "x.toml cannot be read"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = said_by(capsys, *MODEL, *arguments)
    assert code == 2
    assert said in err
    assert err.count("error:") == 1
    assert files_below(tmp_path) == []


def test_an_interruption_leaves_nothing(
    trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrating, "histograms", interrupted)
    code, said = said_by(
        capsys, *MODEL, "--int8", "--calib-data", trees / "train", "--no-equalize", "--output", tmp_path / "out"
    )
    assert code == 130
    assert "nothing half-written" in said
    assert files_below(tmp_path) == []


def _row(runtime: str, precision: str, speedup: float, passed: bool = True) -> BenchRow:
    return BenchRow(runtime, precision, 1, 100 / speedup, 100 / speedup, speedup, "m" * (precision == "int8"), passed)


def test_the_fastest_of_each_form_are_compared() -> None:
    rows = [_row("eager", "fp32", 1.0), _row("onnxruntime-cpu", "fp32", 2.0), _row("onnxruntime-cpu", "int8", 3.0)]
    gain = gain_of([*rows, _row("openvino-cpu", "fp32", 4.0), _row("openvino-cpu", "int8", 5.0, passed=False)], 1)
    assert gain is not None
    assert (gain.runtime, gain.float_runtime, gain.ratio, gain.pays) == ("onnxruntime-cpu", "openvino-cpu", 0.75, False)
    better = gain_of(rows, 1)
    assert better is not None
    assert (better.ratio, better.pays) == (1.5, True)
    assert gain_of(rows[:2], 1) is None
    assert gain_of(rows, 8) is None


def test_what_does_not_pay_is_refused_by_name(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timing is turned round where it paid: this model is so small that either may be faster."""
    from metaformer_export import timing
    from metaformer_export.runtime import bench

    true = bench.interleaved

    def slower(runs: Any, **keywords: Any) -> Any:
        times = true(runs, **keywords)
        return {name: [10 * ms if name.endswith("int8") else ms for ms in each] for name, each in times.items()}

    monkeypatch.setattr(timing.bench, "interleaved", slower)
    arguments = [*MODEL, "--int8", "--calibration", exported / "calibration.json", "--output"]
    code, said = said_by(capsys, *arguments, tmp_path / "slow")
    assert code == 1
    assert "INT8 does not pay here" in said
    assert "--force takes it all the same" in said
    manifest = json.loads((tmp_path / "slow" / "manifest.json").read_text("utf-8"))
    assert manifest["status"] == "failed"
    gain = json.loads((tmp_path / "slow" / "bench.json").read_text("utf-8"))["gain"]
    assert 0 < gain["ratio"] < 1
    assert all(ms > 0 for _, ms in gain["costliest"])
    assert said_by(capsys, *arguments, tmp_path / "slow", "--force")[0] == 0


@pytest.mark.slow
def test_a_plan_is_found_written_and_followed(
    trees: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan"
    data = ["--calib-data", str(trees / "train"), "--calib-size", "64", "--held-out", "48"]
    capsys.readouterr()
    assert main(["calibrate", *MODEL, *data, "--max-drop", "0", "--output", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["files"]) == {"calibration.json", "precision-plan.toml", "sensitivity.json", "sensitivity.svg"}
    costs = [cost["rms_rel"] for _, cost in found["sensitivity"]["modules"]]
    assert costs == sorted(costs, reverse=True)
    assert len(costs) == 41
    chosen = [point for point in found["sensitivity"]["curve"] if point["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["drop"] <= 0
    assert chosen[0]["median_ms"] > 0
    plan = read_plan(out / "precision-plan.toml")
    assert len(plan.keep) == chosen[0]["kept"]
    worst = found["sensitivity"]["modules"][0][0]
    own = PrecisionPlan(plan.model, "int8", "by hand", {worst: "the dearest"})
    own.write(tmp_path / "own.toml")
    arguments = [*MODEL, "--int8", "--force", "--calibration", exported / "calibration.json"]
    assert said_by(capsys, *arguments, "--precision-plan", tmp_path / "own.toml", "--output", tmp_path / "kept")[0] == 0
    manifest = json.loads((tmp_path / "kept" / "manifest.json").read_text("utf-8"))
    kept = manifest["precision"]["kept_in_fp32"]["model.onnx"]
    kept = manifest["precision"]["kept_in_fp32"]["model.onnx"]
    assert {"module": worst, "ops": ["Conv"], "reason": "the dearest"} in kept
    code, said = said_by(capsys, *MODEL, "--fp16", "--precision-plan", tmp_path / "own.toml")
    assert code == 2
    assert "is a plan for hornet_tiny_7x7 in int8, not for hornet_tiny_7x7 in fp16" in said
    PrecisionPlan(plan.model, "int8", "", {f"{worst}x": ""}).write(tmp_path / "wrong.toml")
    code, said = said_by(capsys, *arguments, "--precision-plan", tmp_path / "wrong.toml", "--output", tmp_path / "no")
    assert code == 2
    assert f"has no layers of; did you mean {worst}?" in said


@pytest.mark.slow
def test_float16_spares_modules_too(trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan"
    data = ["--calib-data", str(trees / "train"), "--calib-size", "64", "--held-out", "16", "--precision", "fp16"]
    capsys.readouterr()
    assert main(["calibrate", *MODEL, *data, "--sensitivity", "--output", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sensitivity"]
    assert 1e-5 < found["all_low"]["rms_rel"] < 5e-3
    worst, cost = found["modules"][0]
    assert 0 < cost["rms_rel"] < found["all_low"]["rms_rel"] * 1.5
    PrecisionPlan(found["model"], "fp16", "", {worst: "the dearest"}).write(tmp_path / "own.toml")
    arguments = [*MODEL, "--fp16", "--target", "onnx", "--precision-plan", tmp_path / "own.toml"]
    assert said_by(capsys, *arguments, "--output", tmp_path / "half")[0] == 0
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text("utf-8"))
    kept = manifest["precision"]["kept_in_fp32"]["model.onnx"]
    assert [each["module"] for each in kept if each["reason"] == "the dearest"] == [worst]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no precision plan"),
        ("format = 2", "is of format 2, this version reads 1"),
        ('format = 1\nmodel = "m"\nprecision = "bf16"', "plans 'bf16'"),
        ('format = 1\nmodel = "m"\nprecision = "int8"\nkeep = 3', "is no precision plan"),
        ("format = [", "is no precision plan"),
    ],
)
def test_a_damaged_plan_is_refused(text: str, said: str, tmp_path: Path) -> None:
    from metaformer_export.errors import CalibrationError

    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(CalibrationError, match=said):
        read_plan(tmp_path / "plan.toml")


def test_this_processor_has_seven_or_eight_bits() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert weight_bits() == (8 if "_vnni" in flags or "amx_int8" in flags else 7)

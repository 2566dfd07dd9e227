# SPDX-License-Identifier: Apache-2.0
"""--target: which ways to run a model are tried, what is recorded of each, and which one is chosen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support
from torch import nn

from metaformer_export import load_engine
from metaformer_export.artifacts import BenchRow, Candidate, Lowered, Traced
from metaformer_export.calibration.images import load_images
from metaformer_export.candidates import judge_candidates
from metaformer_export.cli import main
from metaformer_export.errors import EngineError, InputError
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import serialize
from metaformer_export.options import ExportOptions
from metaformer_export.progress import Silent
from metaformer_export.proving import File, Judge, Proved, judge_of, prove, written
from metaformer_export.runtime import onnxruntime, openvino, parity
from metaformer_export.runtime.parity import Thresholds
from metaformer_export.runtime.session import Session
from metaformer_export.runtime.tensorrt import target as tensorrt
from metaformer_export.runtime.tensorrt.engine import Engine, EngineReport
from metaformer_export.runtime.tensorrt.options import EngineOptions
from metaformer_export.runtime.tensorrt.session import Session as EngineSession
from metaformer_export.timing import Stopwatch, choose

SMALL = ["--model", "hornet_test", "--resolution", "64", "--num-classes", "10", "--output", "out"]
ORT, OPENVINO = "onnxruntime-cpu", "openvino-cpu"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_models: None) -> Path:
    """An empty current folder, and the small models."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _report(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("out", f"{name}.json").read_text("utf-8"))
    return content


def _passed(bench: dict[str, Any]) -> dict[tuple[str, str, str], bool]:
    return {(each["runtime"], each["precision"], each["file"]): each["passed"] for each in bench["candidates"]}


@support.needs_bfloat16
def test_auto_records_every_candidate_and_picks_the_fastest_that_passes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SMALL) == 0
    bench = _report("bench")
    file = "model.onnx"
    assert _passed(bench) == {(ORT, "fp32", file): True, (OPENVINO, "fp32", file): True, (OPENVINO, "bf16", file): True}
    errors = {(each["runtime"], each["precision"]): each["rms_rel"] for each in bench["candidates"]}
    assert errors[ORT, "fp32"] <= 1e-5
    assert errors[OPENVINO, "fp32"] <= 1e-5
    assert 1e-4 < errors[OPENVINO, "bf16"] <= 0.04
    timed = {(row["runtime"], row["precision"]): row["median_ms"] for row in bench["results"]}
    assert set(timed) == {("eager", "fp32"), *errors}
    choice = bench["choice"]
    fastest = min((key for key in timed if key[0] != "eager"), key=timed.__getitem__)
    assert (choice["runtime"], choice["precision"], choice["file"]) == (*fastest, file)
    assert choice["median_ms"] == timed[fastest]
    assert choice["speedup_over_eager"] == pytest.approx(timed["eager", "fp32"] / timed[fastest])
    hints = [each["settings"].get("INFERENCE_PRECISION_HINT") for each in bench["candidates"]]
    assert hints == [None, "f32", "bf16"]
    manifest = _report("manifest")
    assert manifest["target"] == "auto"
    assert manifest["choice"] == choice
    assert manifest["candidates"] == bench["candidates"]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[1].startswith("choice: model.onnx in ")
    assert said[1] in Path("out/report.html").read_text("utf-8")


@support.needs_bfloat16
def test_a_candidate_that_fails_parity_is_recorded_and_never_picked(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(parity.THRESHOLDS, "bf16", Thresholds(1e-6, 1e-7, 1.0, 1.0))
    assert main(SMALL) == 0, "the file that was asked for is right"
    bench = _report("bench")
    assert _passed(bench)[OPENVINO, "bf16", "model.onnx"] is False
    (failed,) = (each for each in bench["candidates"] if not each["passed"])
    assert failed["failures"][0].startswith("logits: max_rel ")
    assert failed["rms_rel"] > 1e-4
    assert "bf16" not in {row["precision"] for row in bench["results"]}
    assert bench["choice"]["precision"] == "fp32"
    captured = capsys.readouterr()
    assert f"{OPENVINO} bf16 FAILED" in captured.err
    assert "note: No candidate: OpenVINO in bf16. logits: max_rel " in captured.err


@support.needs_bfloat16
def test_a_bfloat16_file_is_proved_and_timed_in_openvino(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--bf16"]) == 0
    bench = _report("bench")
    assert _passed(bench) == {
        (ORT, "fp32", ""): True,
        (ORT, "bf16", "model.onnx"): False,
        (OPENVINO, "fp32", ""): True,
        (OPENVINO, "bf16", "model.onnx"): True,
    }
    assert (bench["choice"]["runtime"], bench["choice"]["precision"]) == (OPENVINO, "bf16")
    assert bench["choice"]["settings"]["INFERENCE_PRECISION_HINT"] == "f32", "the file says what is bfloat16"
    assert bench["speedup_over_eager"] == pytest.approx(bench["choice"]["speedup_over_eager"])
    assert _report("parity")["methods"] == ["model.onnx, every tensor rounded to bf16"], "auto only adds"
    captured = capsys.readouterr()
    assert "OpenVINO ran the file itself" in captured.err
    assert "was not timed" not in captured.out


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=support.needs_bfloat16)])
def test_target_openvino_decides_with_openvino_too(here: Path, precision: str) -> None:
    low = precision == "bf16"
    assert main([*SMALL, "--target", "openvino", *(["--bf16"] if low else [])]) == 0
    first = "model.onnx, every tensor rounded to bf16" if low else f"model.onnx in {ORT}"
    assert _report("parity")["methods"] == [first, f"model.onnx in {OPENVINO}"]
    bench = _report("bench")
    form = {(OPENVINO, "fp32", ""): True} if low else {}
    assert _passed(bench) == {**form, (OPENVINO, precision, "model.onnx"): True}
    assert {row["runtime"] for row in bench["results"]} == {"eager", OPENVINO}
    assert bench["choice"]["runtime"] == OPENVINO
    assert bench["speedup_over_eager"] == pytest.approx(bench["choice"]["speedup_over_eager"])

    x = support.image(2, 3, 64, 64)
    chosen = load_engine("out")
    assert isinstance(chosen, openvino.Session)
    assert ("bf16" in chosen.executed) == low
    if low:
        with pytest.raises(InputError, match="cannot be run by ONNX Runtime"):
            load_engine("out", runtime="onnxruntime")
    else:
        other = load_engine("out", runtime="onnxruntime")(x)[0]
        assert support.relative_error(chosen(x)[0], other) <= 1e-4


def test_one_batch_size_is_compiled_in(here: Path) -> None:
    assert main([*SMALL, "--target", "openvino", "--batch", "1"]) == 0
    parity_report, bench = _report("parity"), _report("bench")
    assert parity_report["passed"]
    assert parity_report["batches"] == [1, 3]
    assert [each["compiled_for"] for each in (*bench["candidates"], bench["choice"])] == [1, 1]
    said = "in OpenVINO with INFERENCE_PRECISION_HINT=f32, compiled for batches of 1, fp32"
    assert said in Path("out", "report.html").read_text("utf-8")
    chosen, other = load_engine("out"), load_engine("out", runtime="onnxruntime")
    assert isinstance(chosen, openvino.Session)
    assert chosen.batch == 1
    x = support.image(2, 3, 64, 64)
    assert support.relative_error(chosen(x)[0], other(x)[0]) <= 1e-4
    (row,) = (row for row in bench["results"] if row["runtime"] == OPENVINO)
    assert row["batch"] == 1


def test_an_engine_without_a_choice_is_onnx_runtimes(here: Path) -> None:
    assert main([*SMALL, "--target", "onnx"]) == 0
    x = support.image(2, 3, 64, 64)
    want = load_engine("out/model.onnx")(x)[0]
    assert np.array_equal(load_engine("out")(x)[0], want)
    assert isinstance(load_engine("out", runtime="openvino"), openvino.Session)
    manifest = Path("out", "manifest.json")
    manifest.write_text(manifest.read_text("utf-8").replace('"choice": {', '"choice": null, "was": {'), "utf-8")
    assert np.array_equal(load_engine("out")(x)[0], want)
    manifest.write_text("{", "utf-8")
    with pytest.raises(InputError, match=r"manifest.json is damaged.*give the .onnx file"):
        load_engine("out")
    with pytest.raises(InputError, match=r"out/model\.plan does not exist; metaformer-export build out makes it"):
        load_engine("out", runtime="tensorrt")
    with pytest.raises(InputError, match="unknown runtime 'tvm'"):
        load_engine("out", runtime="tvm")  # type: ignore[arg-type]


def test_target_openvino_with_float16_is_refused_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--target", "openvino", "--fp16"]) == 2
    captured = capsys.readouterr()
    (error,) = (line for line in captured.err.splitlines() if line.startswith("metaformer-export: error: "))
    assert "OpenVINO's CPU does not compute in fp16" in error
    assert "Use --bf16, no precision (fp32), or --target onnx." in error
    assert "load" not in captured.err
    assert support.files_below(here) == []


def test_without_openvino_auto_goes_on_and_the_target_is_exit_code_3(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    openvino._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main([*SMALL, "--target", "openvino"]) == 3
    assert 'pip install "metaformer-export[openvino]"' in capsys.readouterr().err
    assert support.files_below(here) == []
    assert main(SMALL) == 0
    bench = _report("bench")
    assert [each["passed"] for each in bench["candidates"]] == [True, False, False]
    assert bench["choice"]["runtime"] == ORT
    (note,) = (note for note in _report("manifest")["notes"] if "OpenVINO" in note)
    assert note.startswith("No candidate: OpenVINO in fp32, OpenVINO in bf16. OpenVINO is not installed; pip install")


def _proved(lowered: Lowered, judge: Judge, folder: Path, progress: Silent | None = None) -> tuple[File, Proved]:
    """The written file, and how it compares with eager."""
    options, progress = ExportOptions(), progress or Silent()
    files, beyond = written((lowered,), judge.images, folder, options, progress)
    return files[0], prove(files, beyond, judge, options, progress)


def _tried(
    file: File, proved: Proved, judge: Judge, progress: Silent | None = None
) -> tuple[dict[tuple[str, str], Candidate], Stopwatch]:
    """All candidates, and the stopwatch that has those to be timed."""
    stopwatch = Stopwatch(judge.decide.model, judge.images, ExportOptions())
    candidates, of_engine = judge_candidates(
        (file,), None, proved, judge, stopwatch, ExportOptions(), progress or Silent()
    )
    assert of_engine is None
    return {(each.runtime, each.precision): each for each in candidates}, stopwatch


@pytest.fixture(scope="module")
def judged(
    small_7x7: nn.Module, traced_small_7x7: Traced, tmp_path_factory: pytest.TempPathFactory
) -> tuple[File, Proved, Judge]:
    """A right export of a small HorNet on two photographs, as far as its proof."""
    lowered = lower(traced_small_7x7, "portable")
    images = load_images(None, lowered.spec)
    images = replace(images, batch=images.batch[:2], names=images.names[:2], sha256=images.sha256[:2])
    judge = judge_of(small_7x7, lowered, images)
    file, proved = _proved(lowered, judge, tmp_path_factory.mktemp("judged"))
    assert proved.report.passed, proved.report.failures
    return file, proved, judge


class _Steps(Silent):
    """Remembers the steps that it was told of."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def step(self, title: str) -> AbstractContextManager[None]:
        self.titles.append(title)
        return super().step(title)


def test_progress_is_told_of_every_run_that_is_held_against_eager(
    small_boat: nn.Module, traced_small_boat: Traced, tmp_path: Path
) -> None:
    lowered = lower(traced_small_boat, "portable")
    images = load_images(None, lowered.spec)
    images = replace(images, batch=images.batch[:1], names=images.names[:1], sha256=images.sha256[:1])
    judge, steps = judge_of(small_boat, lowered, images), _Steps()
    file, proved = _proved(lowered, judge, tmp_path, steps)
    assert steps.titles == ["eager", f"model.onnx in {ORT}", f"model.onnx in {ORT}, its clusterings"]
    steps.titles.clear()
    _tried(file, proved, judge, steps)
    assert steps.titles == ["eager", OPENVINO, f"{OPENVINO}, its clusterings"]


def test_a_runtime_that_computes_something_else_is_not_a_candidate(
    judged: tuple[File, Proved, Judge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that OpenVINO reads has one weight that is one percent off."""
    file, proved, judge = judged
    model = file.converted.model.clone()
    weight = model.graph.initializers["stages.1.0.gnconv.proj_out.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
    tampered = replace(file, path=tmp_path / file.name)
    serialize(model).write(tampered.path)
    candidates, stopwatch = _tried(tampered, proved, judge)
    wrong = candidates[OPENVINO, "fp32"]
    assert wrong.passed is False
    assert wrong.rms_rel is not None
    assert wrong.rms_rel > 1e-4
    assert "max_rel" in wrong.failures[0]
    bench = stopwatch.report(tuple(candidates.values()), proved.report, Silent())
    timed = {(row.runtime, row.precision) for row in bench.results}
    assert (OPENVINO, "fp32") not in timed, "it is not even timed"
    assert (ORT, "fp32") in timed


@pytest.mark.parametrize(("tf32", "arithmetic"), [(True, "tf32"), (False, "fp32")])
def test_an_engine_is_held_to_the_limits_of_what_it_may_multiply_in(
    judged: tuple[File, Proved, Judge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tf32: bool, arithmetic: str
) -> None:
    """TensorRT itself is stood in for: by ONNX Runtime, with weights that are as far off as TF32 would round them."""
    file, proved, judge = judged
    model = file.converted.model.clone()
    for weight in model.graph.initializers.values():
        if weight.const_value is not None and weight.const_value.size > 1000:
            coarse = weight.const_value.numpy().view(np.int32) & ~0x1FFF
            weight.const_value = ir.tensor(coarse.view(np.float32), name=weight.name)
    rounded = tmp_path / "rounded.onnx"
    serialize(model).write(rounded)
    opened = []

    def opener(*_: object) -> Callable[..., Session]:
        def open_session(model: object, *, threads: int, at_once: int = 1) -> Session:
            opened.append(model)
            return onnxruntime.open_session(rounded, threads=threads, at_once=at_once)

        return open_session

    monkeypatch.setattr(tensorrt, "opener", opener)
    monkeypatch.setattr(tensorrt, "environment", lambda: None)
    report, options = EngineReport(1, {}, {}), EngineOptions(tf32=tf32)
    engine = Engine(tmp_path / "model.plan", file.name, "11.4", "made up", 90, (), (1, 8, 32), options, 1.0, report)
    stopwatch = Stopwatch(judge.decide.model, judge.images, ExportOptions())
    found, proof = judge_candidates((file,), engine, proved, judge, stopwatch, ExportOptions(target="onnx"), Silent())
    ours = next(each for each in found if each.runtime == "tensorrt")
    assert opened == [engine.path], "once"
    assert proof is not None
    assert (proof.precision, proof.passed, ours.passed) == (arithmetic, tf32, tf32)
    assert ours.rms_rel == proof.outputs[0].rms_rel
    assert ours.rms_rel is not None
    assert 1e-5 < ours.rms_rel < 0.01
    assert proof.methods == ("tensorrt",)
    assert proof.between == {f"tensorrt, model.onnx in {ORT}": pytest.approx(ours.rms_rel, rel=0.5)}
    alone = replace(proved, ways={})  # as of a bfloat16 file, which ONNX Runtime's CPU does not run
    _, proof = judge_candidates((file,), engine, alone, judge, stopwatch, ExportOptions(target="onnx"), Silent())
    assert proof is not None
    assert (proof.passed, proof.between) == (tf32, {})


def test_an_engine_that_has_no_memory_for_the_usual_batch_is_not_timed_and_takes_nothing_along(
    judged: tuple[File, Proved, Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proved, judge = judged

    def full(self: EngineSession, batch: int, runs: int) -> list[float]:
        raise EngineError(f"no memory for a batch of {batch}")

    monkeypatch.setattr(EngineSession, "gpu_milliseconds", full)
    stopwatch = Stopwatch(judge.decide.model, judge.images, ExportOptions())
    candidate = Candidate("tensorrt", "fp32", "", {}, passed=True)
    stopwatch.take(candidate, EngineSession.__new__(EngineSession))
    bench = stopwatch.report((candidate,), proved.report, Silent())
    assert {row.runtime for row in bench.results} == {"eager"}
    assert bench.candidates == (replace(candidate, passed=False, failures=("no memory for a batch of 1",)),)
    assert "memory" not in bench.unstable, "of what was timed nothing is in doubt"
    assert bench.choice is None
    stopwatch.take(candidate, EngineSession.__new__(EngineSession))
    stopwatch.time(Silent().step)  # as of a large file, by itself
    assert {row.runtime for row in stopwatch.report((candidate,), proved.report, Silent()).results} == {"eager"}


@support.needs_bfloat16
def test_a_model_with_a_float32_op_is_not_lowered_by_a_hint(
    small_boat: nn.Module, traced_small_boat: Traced, tmp_path: Path
) -> None:
    lowered = lower(traced_small_boat, "portable")
    images = load_images(None, lowered.spec)
    images = replace(images, batch=images.batch[:1], names=images.names[:1], sha256=images.sha256[:1])
    judge = judge_of(small_boat, lowered, images)
    file, proved = _proved(lowered, judge, tmp_path)
    *_, float32, low = _tried(file, proved, judge)[0].values()
    assert (float32.runtime, float32.precision, float32.passed) == (OPENVINO, "fp32", True), float32.failures
    assert float32.rms_rel is not None
    assert float32.rms_rel <= 1e-5, "with eager's clusters"
    assert (low.precision, low.passed, low.rms_rel) == ("bf16", False, None)
    assert low.failures == (
        "OpenVINO would lower BalancedClustering too, which stays in float32; --bf16 makes a file that says so.",
    )


def _candidate(runtime: str, precision: str, *, passed: bool, file: str = "model.onnx") -> Candidate:
    return Candidate(runtime, precision, file, {}, passed)  # type: ignore[arg-type]


def _row(runtime: str, precision: str, ms: float, batch: int = 4, file: str = "model.onnx") -> BenchRow:
    return BenchRow(runtime, precision, batch, ms, ms, 100 / ms, file)


def test_the_fastest_that_passed_is_chosen_at_the_usual_batch() -> None:
    candidates = (
        _candidate(ORT, "fp32", passed=True, file=""),
        _candidate(ORT, "bf16", passed=False),
        _candidate(OPENVINO, "fp32", passed=True),
        _candidate(OPENVINO, "bf16", passed=True),
    )
    rows = [
        _row("eager", "fp32", 100.0, file=""),
        _row(ORT, "fp32", 1.0, file=""),  # not in the folder
        _row(ORT, "bf16", 2.0),  # failed
        _row(OPENVINO, "fp32", 50.0),
        _row(OPENVINO, "bf16", 40.0),
        _row(OPENVINO, "fp32", 3.0, batch=1),
    ]
    choice = choose(candidates, rows, 4)
    assert choice is not None
    assert (choice.runtime, choice.precision, choice.batch) == (OPENVINO, "bf16", 4)
    assert (choice.median_ms, choice.speedup_over_eager) == (40.0, 2.5)
    assert choose(candidates[:2], rows, 4) is None

# SPDX-License-Identifier: Apache-2.0
"""The command as a user types it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import support
import torch
from PIL import Image

from metaformer_export import __version__, create_model, load_engine, runtime
from metaformer_export.cli import main
from metaformer_export.errors import InputError
from metaformer_export.models import registry
from metaformer_export.models.checkpoints import sha256_of

RUN_SMALL = str(Path(__file__).parent / "run_small.py")
FAST = pytest.mark.usefixtures("small_models")


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, RUN_SMALL, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@FAST
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_export_is_whole_proved_and_timed(tmp_path: Path, monkeypatch, capsys, precision: str) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [] if precision == "fp32" else [f"--{precision}"]
    assert main(["--model", "hornet_test_gf", "--json", "--batch", "1:2:8", *flags]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    folder = tmp_path / "build" / f"hornet_test_gf-{precision}"
    assert summary["folder"] == f"build/hornet_test_gf-{precision}"
    assert files(folder) == [
        "bench.json",
        "manifest.json",
        "model.onnx",
        "model.plugin.onnx",
        "parity.json",
        "report.html",
    ]
    assert files(tmp_path / "build") == sorted([folder.name, *(f"{folder.name}/{name}" for name in files(folder))])

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
    assert "model.plugin.onnx" in files(folder)
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

    honest = pipeline.lower

    def spoilt(traced, form):
        lowered = honest(traced, form)
        weight = lowered.model.graph.initializers["stages.1.0.gnconv.proj_out.weight"]
        weight.const_value = type(weight.const_value)(weight.const_value.numpy() * 1.01)
        return lowered

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "lower", spoilt)
    assert main(["--model", "hornet_test"]) == 1
    captured = capsys.readouterr()
    assert "PARITY FAILED" in captured.out
    assert "parity failed: logits: max_rel" in captured.err
    manifest = json.loads(Path("build/hornet_test-fp32/manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert json.loads(Path("build/hornet_test-fp32/parity.json").read_text())["passed"] is False


def _bad_inputs(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "linear.pth").read_bytes()[:400])

    class Attack:
        def __reduce__(self):
            return os.system, ("true",)

    (tmp_path / "attack.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    model = ["--model", "hornet_test"]
    return {
        "no model": ([], "give a model with --model"),
        "unknown model": (["--model", "hornet_tst"], "unknown model 'hornet_tst'. Did you mean hornet_test"),
        "nothing like it": (["--model", "resnet"], "See metaformer-export --list"),
        "unknown flag": ([*model, "--fp17"], "No such option"),
        "two precisions": ([*model, "--fp16", "--bf16"], "exclude each other"),
        "size not a multiple": ([*model, "--resolution", "225"], "multiples of 32 up to 4096; got 225x225"),
        "size not a number": ([*model, "--resolution", "big"], "--resolution takes N or HxW"),
        "size beyond all": ([*model, "--resolution", "1000000"], "up to 4096"),
        "size of many digits": ([*model, "--resolution", "9" * 5000], "--resolution takes N or HxW"),
        "batch beyond all": ([*model, "--batch", "1:1:1000000"], "<= 1024"),
        "classes beyond all": ([*model, "--num-classes", "1000000000000"], "at most 1000000"),
        "classes of features": ([*model, "--num-classes", "5", "--features"], "has no classes"),
        "neck without features": ([*model, "--neck", "horfpn_7x7"], "ask for features (--features) too"),
        "unknown neck": ([*model, "--features", "--neck", "../fpn"], "hornet_test takes horfpn_7x7 or horfpn_gf"),
        "neck without weights": (
            [*model, "--features", "--neck", "horfpn_gf", "--checkpoint", "linear.pth"],
            "holds no weights of a neck",
        ),
        "size of zero": ([*model, "--resolution", "0"], "multiples of 32 up to 4096; got 0x0"),
        "batch": ([*model, "--batch", "8:1:2"], "1 <= MIN <= OPT <= MAX"),
        "batch not a number": ([*model, "--batch", "many"], "N or MIN:OPT:MAX"),
        "opset": ([*model, "--opset", "17"], "use 18 to 23"),
        "opset for bf16": ([*model, "--bf16", "--opset", "20"], "--bf16 needs opset 22"),
        "io": ([*model, "--io", "fp16"], "--io fp16 goes with --fp16"),
        "classes": ([*model, "--num-classes", "0"], "at least 1"),
        "checkpoint missing": ([*model, "--checkpoint", "nowhere.pth"], "does not exist"),
        "checkpoint a folder": ([*model, "--checkpoint", "photos"], "is not a file"),
        "checkpoint of text": ([*model, "--checkpoint", "text.pth"], "not a checkpoint"),
        "checkpoint cut": ([*model, "--checkpoint", "cut.pth"], "damaged, cut short"),
        "checkpoint with code": ([*model, "--checkpoint", "attack.pth"], "would run code"),
        "another architecture": ([*model, "--checkpoint", "linear.pth"], "first downsample_layers.0.0.weight"),
        "images missing": ([*model, "--images", "nowhere"], "does not exist"),
        "images empty": ([*model, "--images", "empty"], "no images"),
        "images not images": ([*model, "--images", "photos"], "a.jpg is not an image"),
        "output the current folder": ([*model, "--output", "."], "is the current folder or above it"),
        "output above the current folder": ([*model, "--output", ".."], "is the current folder or above it"),
        "output empty": ([*model, "--output", ""], "is the current folder"),
        "output a file": ([*model, "--output", "text.pth"], "is a file"),
        "output below a file": ([*model, "--output", "text.pth/x"], "is a file"),
        "output of somebody else": ([*model, "--output", "mine"], "thesis.tex for one"),
        "output not writable": ([*model, "--output", "/proc/x"], "cannot be written"),
    }


@FAST
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    cases = _bad_inputs(tmp_path)
    before = files(tmp_path)
    for name, (arguments, expected) in cases.items():
        assert main(arguments) == 2, name
        captured = capsys.readouterr()
        error = [line for line in captured.err.splitlines() if line.startswith("metaformer-export: error: ")]
        assert len(error) == 1, (name, captured.err)
        assert captured.err.splitlines()[-1] == error[0], name
        assert expected in error[0], (name, error[0])
        assert "Traceback" not in captured.err, name
        assert captured.out == "", name
        assert files(tmp_path) == before, name


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


@FAST
def test_without_onnx_runtime_the_extra_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [
        name
        for name in sys.modules
        if name.startswith(("metaformer_export.runtime.onnx", "metaformer_export.pipeline"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(runtime, "onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["--model", "hornet_test"]) == 3
    assert 'pip install "metaformer-export[cpu]"' in capsys.readouterr().err
    assert files(tmp_path) == []


def test_load_engine_says_what_it_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "empty.onnx").touch()
    for type_ in (onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16):
        x, y = (onnx.helper.make_tensor_value_info(name, type_, [1]) for name in "xy")
        add = onnx.helper.make_node("Add", ["x", "x"], ["y"])
        graph = onnx.helper.make_graph([add], "g", [x], [y])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / f"{type_}.onnx")
    for path in [*tmp_path.glob("*.onnx"), tmp_path / "nowhere"]:
        with pytest.raises(InputError, match=str(path)) as caught:
            load_engine(path)
        assert "\n" not in str(caught.value)


def test_the_version_is_the_packages(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"metaformer-export, version {__version__}\n"


def test_a_reader_that_closes_early_is_told_nothing() -> None:
    command = f"{sys.executable} -m metaformer_export --list | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@FAST
def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", "hornet_tst", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_list_names_every_variant(capsys) -> None:
    assert main(["--list"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(registry.variants()) >= 11
    row = next(line for line in table if line.startswith("hornet_tiny_7x7"))
    assert " ".join(row.split()) == "hornet_tiny_7x7 hornet_t 22.4 M 224 multiples of 32, --features, --neck"
    assert main(["--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["short_name"] for row in rows] == [variant.short_name for _, variant in registry.variants()]
    by_name = {row["short_name"]: row for row in rows}
    assert by_name["hornet_t_gf"]["mixer_ops"] == ["GlobalFilter"]
    assert [(neck["name"], neck["mixer_ops"]) for neck in by_name["hornet_t"]["necks"]] == [
        ("horfpn_7x7", []),
        ("horfpn_gf", ["GlobalFilter"]),
    ]
    assert by_name["hornet_t"]["necks"][0]["outputs"] == ["p2", "p3", "p4", "p5", "p6"]


def test_help_fits_80_columns_and_names_every_option(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    for option in [
        "--model",
        "--list",
        "--checkpoint",
        "--fp16",
        "--bf16",
        "--resolution",
        "--batch",
        "--num-classes",
        "--features",
        "--neck",
        "--output",
        "--images",
        "--opset",
        "--io",
        "--json",
        "-v",
        "--debug",
        "--version",
        "--seed",
    ]:
        assert f"{option} " in text or f"{option}," in text, option
    for neck in {neck.name for family in registry.FAMILIES for neck in family.necks}:
        assert neck in text


def test_importing_the_package_takes_no_torch_and_little_time() -> None:
    code = (
        "import time; t = time.perf_counter(); import metaformer_export; print(time.perf_counter() - t);"
        "import sys; print('torch' in sys.modules)"
    )
    results = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(3)]
    assert {loaded for _, loaded in results} == {"False"}
    assert min(float(seconds) for seconds, _ in results) <= 0.2


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the model is larger."""
    process = start("--limit-file-size", "100000", "--model", "hornet_test", cwd=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("metaformer-export: error: output folder")
    assert "cannot be written" in errors.splitlines()[-1]
    assert files(tmp_path) == []


@pytest.mark.parametrize("stage", ["start", "load", "trace", "parity"])
def test_kill_9_during_an_export_leaves_nothing(tmp_path: Path, stage: str) -> None:
    kill_after(stage, tmp_path)
    assert files(tmp_path) == []


def test_kill_9_while_writing_leaves_no_half_folder(tmp_path: Path) -> None:
    """The folder is there with every file its manifest names, or it is not there."""
    kill_after("time", tmp_path)
    folder = tmp_path / "build" / "hornet_test-fp32"
    assert [path.name for path in (tmp_path / "build").glob("[!.]*")] in ([], [folder.name])
    if folder.exists():
        outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
        assert all(sha256_of(folder / name) == entry["sha256"] for name, entry in outputs.items())


def test_kill_9_leaves_an_old_folder_as_it_was(tmp_path: Path) -> None:
    assert start("--model", "hornet_test", cwd=tmp_path).wait() == 0
    before = {name: sha256_of(tmp_path / name) for name in files(tmp_path) if (tmp_path / name).is_file()}
    assert len(before) == 5
    kill_after("parity", tmp_path)
    assert {name: sha256_of(tmp_path / name) for name in files(tmp_path) if (tmp_path / name).is_file()} == before


def test_an_interrupt_that_torch_wrapped_is_still_one(monkeypatch, capsys) -> None:
    """torch turns a Ctrl-C during its own imports into errors of its own."""

    def interrupted(*_: object) -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise AttributeError("half-loaded")
        except AttributeError as error:
            raise RuntimeError("Failed to export the model") from error

    monkeypatch.setattr("metaformer_export.cli._options", interrupted)
    assert main(["--model", "hornet_t"]) == 130
    assert "interrupted" in capsys.readouterr().err


def kill_after(stage: str, folder: Path) -> None:
    """Run an export and kill it as soon as it says that a stage is done."""
    process = start("--model", "hornet_test", cwd=folder)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(stage):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    process = start("--model", "hornet_test", cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("load"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "metaformer-export: error: interrupted; nothing half-written is left."
    assert files(tmp_path) == []

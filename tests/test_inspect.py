# SPDX-License-Identifier: Apache-2.0
"""inspect, and exports of a checkpoint without --model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import support
import torch

from metaformer_export import ExportOptions, create_model, export_model
from metaformer_export.cli import main
from metaformer_export.errors import InputError
from metaformer_export.models.checkpoints import sha256_of

SMALL = pytest.mark.usefixtures("small_models")


def test_inspect_says_what_a_timm_file_is(tmp_path: Path, capsys) -> None:
    state = {name: tensor.half() for name, tensor in support.golden_state_dict("timm/caformer_s18").items()}
    path = tmp_path / "best.pth"
    torch.save({"epoch": 7, "model": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    assert main(["inspect", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "file": str(path),
        "sha256": sha256_of(path),
        "family": "metaformer_baselines",
        "model": "caformer_s18",
        "short_name": "caformer_s18",
        "same_tensors": ["caformer_s18_384"],
        "kind": "classifier",
        "num_classes": 1000,
        "in_chans": 3,
        "source": "timm",
        "wrapper": "model",
        "stored_as": ["float16"],
        "tensors": 206,
        "parameters": 26_341_656,
    }
    assert captured.err == ""
    assert main(["inspect", str(path)]) == 0
    captured = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in captured.out.splitlines())
    assert lines["model"] == "caformer_s18 (caformer_s18), family metaformer_baselines"
    assert lines["kind"] == "classifier, 1000 classes, 3 input channels"
    assert lines["names"] == "timm; under 'model' in the file"
    assert lines["tensors"] == "206, 26,341,656 parameters"
    assert captured.err.startswith("note: Taken for a caformer_s18; caformer_s18_384 is the same network")


@SMALL
def test_inspect_tells_heads_channels_and_backbones(tmp_path: Path, capsys) -> None:
    files = {
        "pets.safetensors": create_model("hornet_test", num_classes=37, in_chans=5),
        "backbone.safetensors": create_model("hornet_test_gf", features=True),
    }
    facts = {}
    for name, model in files.items():
        safetensors.torch.save_file(model.state_dict(), tmp_path / name)
        assert main(["inspect", str(tmp_path / name), "--json"]) == 0
        facts[name] = json.loads(capsys.readouterr().out)
    pets, backbone = facts.values()
    assert (pets["model"], pets["kind"], pets["num_classes"], pets["in_chans"]) == ("hornet_test", "classifier", 37, 5)
    assert (backbone["model"], backbone["kind"], backbone["num_classes"]) == ("hornet_test_gf", "backbone", None)
    assert pets["stored_as"] == ["float32"]
    assert pets["parameters"] == sum(parameter.numel() for parameter in files["pets.safetensors"].parameters())


@SMALL
def test_an_export_without_a_model_takes_the_checkpoints(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(create_model("hornet_test_gf", seed=3, num_classes=12).state_dict(), "mine.pth")
    assert main(["--checkpoint", "mine.pth", "--resolution", "64", "--json"]) == 0
    captured = capsys.readouterr()
    assert "mine.pth is a classifier of hornet_test_gf" in captured.err
    summary = json.loads(captured.out)
    assert summary["model"] == "hornet_test_gf"
    assert summary["folder"] == "build/hornet_test_gf-64x64-fp32"
    assert summary["parity"]["outputs"][0]["max_rel"] <= 1e-4
    manifest = json.loads(Path(summary["folder"], "manifest.json").read_text())
    assert manifest["inputs"]["checkpoint"] == {"file": "mine.pth", "sha256": sha256_of(Path("mine.pth"))}
    assert manifest["model"]["num_classes"] == 12


@SMALL
def test_what_cannot_be_recognised_is_one_line_and_exit_code_2(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(3, 3)}, "linear.pth")
    torch.save(create_model("hornet_test", features=True).state_dict(), "backbone.pth")
    changed = create_model("hornet_test").state_dict()
    del changed["norm.bias"]
    torch.save(changed, "changed.pth")
    before = sorted(tmp_path.rglob("*"))
    cases = {
        ("inspect", "nowhere.pth"): "checkpoint nowhere.pth does not exist.",
        ("inspect", "linear.pth"): "linear.pth is not recognised",
        ("--checkpoint", "linear.pth"): "linear.pth is not recognised",
        ("inspect", "changed.pth"): "It looks like hornet_test.",
        ("--checkpoint", "backbone.pth"): "is the backbone of a hornet_test, without a classifier; add --features",
        ("inspect",): "Missing argument 'FILE|DIR'",
        ("inspect", "changed.pth", "--fp16"): "No such option",
        ("--fp16", "inspect", "changed.pth"): "--fp16 does not go with inspect",
        ("inspct",): "No such command 'inspct'",
        (): "give a model with --model NAME, or weights with --checkpoint FILE",
    }
    for arguments, expected in cases.items():
        assert main(list(arguments)) == 2, arguments
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("metaformer-export: error: ")]
        assert captured.err.splitlines()[-1:] == errors, arguments
        assert expected in errors[0], (arguments, errors)
        assert captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_the_python_function_needs_a_model_or_a_checkpoint() -> None:
    with pytest.raises(InputError, match="needs a model, or a checkpoint"):
        export_model(ExportOptions())


def test_help_shows_the_command(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    commands = capsys.readouterr().out.partition("\nCommands:\n")[2].splitlines()
    assert commands == [
        "  build      Build a TensorRT engine in an output folder.",
        "  calibrate  Find ranges, costly modules and a precision plan.",
        "  classify   Ask a server what images show.",
        "  eval       Measure the accuracy of an exported model.",
        "  inspect    Say what a checkpoint or an output folder is.",
        "  lint       Check a Triton model repository without a server.",
        "  parity     Check an export against PyTorch again; find what departs.",
        "  plugins    Compile the mixer ops' GPU kernels; no GPU needed.",
        "  serve      Start a Triton Inference Server on an export.",
        "  triton     Add an export to a Triton model repository.",
    ]
    assert main(["inspect", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def engine_folder(folder: Path, report: dict[str, object]) -> Path:
    """As much of an output folder with an engine as inspect reads."""
    usual = {"layers": 7, "wanted": {}, "got": {}, "fallen_back": [], "reformats": 2, "casts": 1, "plugins": {}}
    engine = {"version": "11.4.0.106", "gpu": "made up", "source": "model.onnx", "batch": [1, 8, 32]}
    made = {
        "model": asdict(support.spec_for("hornet_test")),
        "precision": {"requested": "int8", "io": "fp32"},
        "status": "passed",
        "created": "today",
        "machine": "here",
        "outputs": {},
        "choice": None,
        "tensorrt": engine | {"report": usual | report},
    }
    (folder / "manifest.json").write_text(json.dumps(made))
    return folder


@SMALL
def test_inspect_says_what_an_engine_computes_and_converts_beside_the_file(tmp_path: Path, capsys) -> None:
    fallen = [
        {"layer": "x", "modules": ["stages.0.mlp", "stages.1.mlp"], "wanted": "int8", "got": "fp16"},
        {"layer": "y", "modules": ["head"], "wanted": "fp16"},
    ]
    folder = engine_folder(tmp_path, {"fallen_back": fallen, "unexpected_casts": 3, "unknown": 4})
    assert main(["inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == [
        "layers      7, 2 reformats, plugins none",
        "casts       1 of the file's own, 3 unexpected (layers that only change a type)",
        "unknown     TensorRT does not say in which type 4 nodes compute",
        "fell back   stages.0.mlp, stages.1.mlp: fp16 instead of int8",
        "fell back   head: float32 instead of fp16",
    ]


@SMALL
def test_inspect_reads_an_engine_of_an_older_export_and_one_that_nobody_could_read(tmp_path: Path, capsys) -> None:
    assert main(["inspect", str(engine_folder(tmp_path, {}))]) == 0
    older = capsys.readouterr().out.splitlines()
    assert older[-1] == "casts       1 of the file's own, 0 unexpected (layers that only change a type)"
    assert main(["inspect", str(engine_folder(tmp_path, {"unread": "the engine holds names only."}))]) == 0
    assert "unread      the engine holds names only." in capsys.readouterr().out.splitlines()

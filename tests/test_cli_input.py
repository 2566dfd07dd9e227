# SPDX-License-Identifier: Apache-2.0
"""What the command says to bad input and to questions."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import support
import torch

from metaformer_export import __version__, load_engine
from metaformer_export.cli import main
from metaformer_export.errors import InputError
from metaformer_export.models import registry

FAST = pytest.mark.usefixtures("small_models")


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
        "unknown target": ([*model, "--target", "coreml"], "is not one of 'auto', 'onnx', 'openvino', 'tensorrt'"),
        "fp16 in OpenVINO": ([*model, "--target", "openvino", "--fp16"], "Use --bf16, no precision (fp32), or"),
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
    before = support.files_below(tmp_path)
    for name, (arguments, expected) in cases.items():
        assert main(arguments) == 2, name
        captured = capsys.readouterr()
        error = [line for line in captured.err.splitlines() if line.startswith("metaformer-export: error: ")]
        assert len(error) == 1, (name, captured.err)
        assert captured.err.splitlines()[-1] == error[0], name
        assert expected in error[0], (name, error[0])
        assert "Traceback" not in captured.err, name
        assert captured.out == "", name
        assert support.files_below(tmp_path) == before, name


def test_without_onnx_runtime_the_extra_is_named(tmp_path: Path) -> None:
    """In a process of its own: most modules of this one have it already."""
    code = (
        "import sys; sys.modules['onnxruntime'] = None; from metaformer_export.cli import main; "
        "sys.exit(main(['--model', 'hornet_t']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert 'pip install "metaformer-export[cpu]"' in done.stderr
    assert support.files_below(tmp_path) == []


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
        "--target",
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

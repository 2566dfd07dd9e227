# SPDX-License-Identifier: Apache-2.0
"""Model repositories as a user gets them: one in each export, others by `metaformer-export triton`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import support
import yaml
from repositories import configs, engine
from tritonclient.grpc import model_config_pb2 as schema

from metaformer_export import pipeline
from metaformer_export.cli import main
from metaformer_export.delivered import read_manifest, read_spec
from metaformer_export.deploying import write_own_repository
from metaformer_export.models import registry
from metaformer_export.models.checkpoints import sha256_of
from metaformer_export.runtime.triton import curve
from metaformer_export.runtime.triton.labels import IMAGENET
from metaformer_export.runtime.triton.lint import lint

PARTS = ("", "_postprocess", "_preprocess", "_ensemble")
"""Of a model's name, in the order in which its models are added."""


def export(folder: Path, *arguments: str) -> int:
    """The exit code of an export of a small model to 64x64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FAMILIES", (support.small_family(),))
        given = ["--model", "hornet_test", "--target", "onnx", "--resolution", "64", "--output", str(folder)]
        return main([*given, *arguments])


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "made"
    assert export(folder) == 0
    return folder


@pytest.fixture(scope="module")
def once_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "maps"
    assert export(folder, "--features") == 0
    return folder


@pytest.fixture
def made(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of an export below the current folder, made."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once, "made")
    return Path("made")


@pytest.fixture
def maps(once_maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Likewise of stage maps."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once_maps, "maps")
    return Path("maps")


def with_engine(once: Path, folder: str, architecture: int, plan: bytes, **told: Any) -> Path:
    """An export with a file in place of an engine, and the manifest's word on it."""
    shutil.copytree(once, folder)
    changed(Path(folder), lambda manifest: manifest.update(tensorrt=engine(architecture, **told)))
    (Path(folder) / "model.plan").write_bytes(plan)
    return Path(folder)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another manifest."""
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that ends with 2 says, which is a line."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metaformer-export: ")]
    return said.removeprefix("metaformer-export: error: ")


def test_an_export_holds_a_repository_whose_files_are_all_in_the_manifest(once: Path) -> None:
    outputs = read_manifest(once)["outputs"]
    files = {path.relative_to(once).as_posix() for path in once.rglob("*") if path.is_file()}
    assert set(outputs) == files - {"manifest.json"}
    for name, entry in outputs.items():
        assert entry == {"sha256": sha256_of(once / name), "bytes": (once / name).stat().st_size}
    below = {f"triton/hornet_test{part}/config.pbtxt" for part in PARTS}
    assert below <= set(outputs)
    assert lint(once / "triton") == ()
    assert (once / "triton/hornet_test/1/model.onnx").samefile(once / "model.onnx")
    assert list(once.glob(".*")) == []


def test_its_configuration_is_of_the_export(once: Path) -> None:
    said = configs(once / "triton")
    assert set(said) == {f"hornet_test{part}" for part in PARTS}
    assert {each.max_batch_size for each in said.values()} == {32}
    model = said["hornet_test"]
    assert [(each.name, list(each.dims)) for each in model.input] == [("input", [3, 64, 64])]
    assert [(each.name, list(each.dims)) for each in model.output] == [("logits", [1000])]
    assert (once / "triton/hornet_test/labels.txt").read_bytes() == IMAGENET.read_bytes()
    pixels = np.frombuffer((once / "triton/hornet_test/warmup/pixels").read_bytes(), np.float32)
    assert pixels.size == 3 * 64 * 64
    assert pixels.std() > 0.3
    told = json.loads((once / "triton/hornet_test/1/export.json").read_text())
    assert told["manifest"] == {key: value for key, value in read_manifest(once).items() if key != "outputs"}
    (row,) = [
        row
        for row in json.loads((once / "bench.json").read_text())["results"]
        if (row["runtime"], row["file"]) == ("onnxruntime-cpu", "model.onnx")
    ]
    assert told["latencies"]["points"] == [{"batch": 1, "ms": row["median_ms"]}]


def test_stage_maps_have_no_classes_to_name(once_maps: Path) -> None:
    said = configs(once_maps / "triton")
    assert set(said) == {f"hornet_test_features{part}" for part in ("", "_preprocess", "_ensemble")}
    dims = {each.name: list(each.dims) for each in said["hornet_test_features_ensemble"].output}
    assert dims == {"stage0": [16, 16, 16], "stage1": [32, 8, 8], "stage2": [64, 4, 4], "stage3": [128, 2, 2]}
    assert lint(once_maps / "triton") == ()
    assert list(once_maps.rglob("labels.txt")) == []


def test_a_folder_that_a_server_has_used_is_exported_again(made: Path) -> None:
    """The Python of a server leaves its cache beside the code."""
    for model in ("hornet_test_preprocess", "hornet_test_postprocess"):
        (made / "triton" / model / "1/__pycache__").mkdir()
        (made / "triton" / model / "1/__pycache__/model.cpython-312.pyc").write_bytes(b"compiled")
    assert export(made, "--no-triton") == 0
    assert support.files_below(made) == ["bench.json", "manifest.json", "model.onnx", "parity.json", "report.html"]
    assert set(read_manifest(made)["outputs"]) == {"bench.json", "model.onnx", "parity.json", "report.html"}


def test_a_file_of_others_in_the_repository_is_not_lost(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "triton/hornet_test/2").mkdir()
    (made / "triton/hornet_test/2/model.onnx").write_bytes(b"theirs")
    assert export(made) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "metaformer-export: error: output folder made holds files that are not from metaformer-export, "
        "triton/hornet_test/2/model.onnx for one; move them or give another folder."
    )
    assert (made / "triton/hornet_test/2/model.onnx").read_bytes() == b"theirs"


def test_an_export_that_failed_has_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pipeline.lower_all

    def spoilt(*arguments: Any) -> Any:
        lowered = honest(*arguments)
        weight = lowered[0].model.graph.initializers["stages.1.0.gnconv.proj_out.weight"]
        weight.const_value = type(weight.const_value)(weight.const_value.numpy() * 1.01)
        return lowered

    monkeypatch.setattr(pipeline, "lower_all", spoilt)
    assert export(tmp_path / "made") == 1
    assert read_manifest(tmp_path / "made")["status"] == "failed"
    assert not (tmp_path / "made/triton").exists()


def test_an_export_is_added_to_a_repository_and_the_same_again_is_not(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["triton", "made", "--repository", "R", "--no-measure"]) == 0
    assert capsys.readouterr().out == "".join(f"R/hornet_test{part}: version 1 added\n" for part in PARTS)
    assert lint(Path("R")) == ()
    assert not Path("R/hornet_test/1/model.onnx").samefile(made / "model.onnx")
    assert main(["triton", "made", "--repository", "R", "--no-measure"]) == 0
    assert capsys.readouterr().out == "".join(f"R/hornet_test{part}: version 1 is the same\n" for part in PARTS)
    (made / "model.onnx").write_bytes((made / "model.onnx").read_bytes() + b"\x12\x00")
    assert main(["triton", "made", "--repository", "R", "--no-measure", "--keep", "1"]) == 0
    same = "".join(f"R/hornet_test{part}: version 1 is the same\n" for part in PARTS[1:])
    assert capsys.readouterr().out == f"R/hornet_test: version 2 added, removed 1\n{same}"
    assert [path.name for path in sorted(Path("R/hornet_test").iterdir()) if path.is_dir()] == ["2", "warmup"]
    assert sorted(path.name for path in Path().iterdir()) == ["R", "made"]


def test_what_was_added_is_told_as_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "bench.json").write_text(
        json.dumps(
            {
                "machine": "made up",
                "threads": 3,
                "results": [
                    {"runtime": "onnxruntime-cpu", "file": file, "batch": batch, "median_ms": ms}
                    for file, batch, ms in (("model.onnx", 8, 30), ("model.onnx", 1, 10), ("", 4, 1))
                ],
            }
        )
    )
    assert main(["triton", "made", "--repository", "R", "--no-measure", "--name", "mine", "--json"]) == 0
    wanted = {
        "repository": "R",
        "model": "mine",
        "backend": "onnxruntime",
        "max_batch": 32,
        "preferred_batch_sizes": [8],
        "latencies": {"points": [[1, 10.0], [8, 30.0]], "source": "onnxruntime-cpu, made up, 3 threads"},
        "models": [{"model": f"mine{part}", "version": 1, "new": True, "removed": []} for part in PARTS],
    }
    told = json.loads(capsys.readouterr().out)
    assert {key: told[key] for key in wanted} == wanted
    said = configs(Path("R"))
    assert list(said["mine"].dynamic_batching.preferred_batch_size) == [8]
    assert said["mine_ensemble"].ensemble_scheduling.step[1].model_name == "mine"


def test_latencies_are_measured_here_unless_that_is_not_wanted(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curve, "_SECONDS", 0.0)
    assert main(["triton", "made", "--repository", "R", "--json"]) == 0
    latencies = json.loads(capsys.readouterr().out)["latencies"]
    assert [batch for batch, _ in latencies["points"]] == [1, 2, 4, 8, 16, 32]
    assert all(0 < ms < 10_000 for _, ms in latencies["points"])
    assert latencies["points"][5][1] > latencies["points"][0][1]
    assert latencies["source"].startswith("onnxruntime-cpu, ")
    told = json.loads(Path("R/hornet_test/1/export.json").read_text())["latencies"]
    assert [[each["batch"], each["ms"]] for each in told["points"]] == latencies["points"]


def test_options_reach_the_configurations(made: Path) -> None:
    given = "--backend python --device gpu --instances 2 --top-k 3 --queue-timeout 2 --queue-delay 1.5"
    more = "--version-policy all --response-cache --max-image-mb 7 --max-megapixels 8"
    assert main(["triton", "made", "--repository", "R", "--no-measure", *given.split(), *more.split()]) == 0
    said = configs(Path("R"))
    model = said["hornet_test"]
    assert model.backend == "python"
    assert [(each.kind, each.count) for each in model.instance_group] == [(schema.ModelInstanceGroup.KIND_GPU, 2)]
    assert model.dynamic_batching.max_queue_delay_microseconds == 1500
    assert model.dynamic_batching.default_queue_policy.default_timeout_microseconds == 2_000_000
    assert model.version_policy.WhichOneof("policy_choice") == "all"
    assert model.response_cache.enable is True
    assert {name: list(each.output[0].dims) for name, each in said.items()} == {
        "hornet_test": [1000],
        "hornet_test_preprocess": [3, 64, 64],
        "hornet_test_postprocess": [3],
        "hornet_test_ensemble": [3],
    }
    assert said["hornet_test_preprocess"].parameters["max_image_bytes"].string_value == "7000000"
    assert said["hornet_test_preprocess"].parameters["max_image_pixels"].string_value == "8000000"
    names = [path.name for path in sorted(Path("R/hornet_test/1").iterdir())]
    assert names == ["export.json", "model.onnx", "model.py"]
    assert lint(Path("R")) == ()


def test_accelerators_reach_the_configuration(made: Path) -> None:
    assert main(["triton", "made", "--repository", "R", "--no-measure", "--accelerator", "openvino"]) == 0
    (accelerator,) = configs(Path("R"))["hornet_test"].optimization.execution_accelerators.cpu_execution_accelerator
    assert accelerator.name == "openvino"


def test_labels_of_ones_own_are_served(made: Path) -> None:
    names = "".join(f"thing {i}\n" for i in range(1000))
    Path("names").write_bytes(b"\xef\xbb\xbf" + names.replace("\n", "\r\n").encode())  # as Windows writes it
    assert main(["triton", "made", "--repository", "R", "--no-measure", "--labels", "names"]) == 0
    assert Path("R/hornet_test/labels.txt").read_bytes() == names.encode()
    assert Path("R/hornet_test_postprocess/1/labels.txt").read_bytes() == names.encode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["made", "--labels", "names"], "names names 2 classes, and the model has 1000; give a line for each."),
        (["made", "--labels", "none"], "the labels in none cannot be read: [Errno 2] No such file"),
        (["nowhere"], "nowhere is no output folder of metaformer-export: it has no manifest.json."),
        (["made", "made"], "a folder is given twice."),
        (
            ["made", "--backend", "tensorrt"],
            "made/model.plan does not exist, or the manifest does not tell of it; metaformer-export build made makes",
        ),
        (["made", "other"], "several folders are for several GPUs: made and other need a model.plan each."),
        (["made", "--name", "a/b"], "--name takes letters, digits, dots, dashes and underscores; got 'a/b'."),
        (["made", "--version-policy", "newest"], "--version-policy takes latest:N, all or specific:N,M; got 'newest'."),
        (["made", "--queue-timeout", "0"], "--queue-timeout must be above 0; got 0.0."),
        (["made", "--queue-delay", "nan"], "--queue-delay must be 0 or more; got nan."),
        (["made", "--cuda-graphs"], "--cuda-graphs goes with the tensorrt backend, and hornet_test is served by onnx"),
        (["made", "--backend", "python", "--accelerator", "openvino"], "--accelerator openvino goes with the onnxrunt"),
    ],
)
def test_what_cannot_be_served_is_a_line_and_nothing_is_written(
    made: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    shutil.copytree(made, "other")
    Path("names").write_text("cat\ndog\n")
    before = support.files_below(Path())
    assert error_of(capsys, "triton", *arguments, "--repository", "R", "--no-measure").startswith(message)
    assert support.files_below(Path()) == before


def test_a_failed_export_is_served_by_force_alone(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(made, lambda manifest: manifest.update(status="failed"))
    said = error_of(capsys, "triton", "made", "--repository", "R", "--no-measure")
    assert said == "made is marked failed; its parity.json says why, and --force serves it all the same."
    assert not Path("R").exists()
    assert main(["triton", "made", "--repository", "R", "--no-measure", "--force"]) == 0
    assert len(configs(Path("R"))) == 4


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"machine": "", "threads": 1, "results": [{}]}'])
def test_damaged_latencies_are_a_line(made: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (made / "bench.json").write_text(content)
    said = error_of(capsys, "triton", "made", "--repository", "R", "--no-measure")
    assert said.startswith("made/bench.json is damaged (")
    assert said.endswith("); export the model again.")


def test_another_model_under_the_name_is_refused(made: Path, maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton", "made", "--repository", "R", "--no-measure", "--name", "mine"]) == 0
    before = support.files_below(Path("R"))
    said = error_of(capsys, "triton", "maps", "--repository", "R", "--no-measure", "--name", "mine")
    assert said.startswith("R/mine is there already and gives logits FP32 [1000], not stage0 FP32 [16, 16, 16], ")
    assert said.endswith("; give it another name with --name, or another repository.")
    said = error_of(capsys, "triton", "made", "--repository", "R", "--no-measure", "--name", "mine", "--top-k", "2")
    assert said.startswith("R/mine_postprocess is there already and gives scores FP32 [5], ")
    assert support.files_below(Path("R")) == before


@pytest.fixture
def ampere(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export with an engine for compute capability 8.0."""
    monkeypatch.chdir(tmp_path)
    return with_engine(once, "ampere", 80, b"for 8.0", batch=(1, 8, 32))


def test_an_engine_is_served_by_its_own_backend(ampere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton", "ampere", "--repository", "R", "--cuda-graphs", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["backend"], told["max_batch"], told["preferred_batch_sizes"]) == ("tensorrt", 32, [4])
    assert told["latencies"] == {"points": [[1, 1.0], [4, 2.0]], "source": "TensorRT 11.1.0.106 on made up"}
    model = configs(Path("R"))["hornet_test"]
    assert (model.backend, model.platform, model.default_model_filename) == ("tensorrt", "tensorrt_plan", "model.plan")
    assert dict(model.cc_model_filenames) == {}
    assert [each.batch_size for each in model.optimization.cuda.graph_spec] == [1, 4]
    assert sorted(path.name for path in Path("R/hornet_test/1").iterdir()) == ["export.json", "model.plan"]
    assert Path("R/hornet_test/1/model.plan").read_bytes() == b"for 8.0"
    assert lint(Path("R")) == ()


def test_engines_for_several_gpus_are_one_model(once: Path, ampere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_engine(once, "hopper", 90, b"for 9.0", batch=(1, 8, 16))
    given = ["triton", "ampere", "hopper", "--repository", "R", "--json"]
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out)["max_batch"] == 16
    model = configs(Path("R"))["hornet_test"]
    assert model.default_model_filename == "model.plan"
    assert dict(model.cc_model_filenames) == {"8.0": "model.plan", "9.0": "sm_90.plan"}
    assert model.max_batch_size == 16
    assert Path("R/hornet_test/1/model.plan").read_bytes() == b"for 8.0"
    assert Path("R/hornet_test/1/sm_90.plan").read_bytes() == b"for 9.0"
    told = json.loads(Path("R/hornet_test/1/export.json").read_text())
    assert {file: each["architecture"] for file, each in told["engines"].items()} == {
        "model.plan": 80,
        "sm_90.plan": 90,
    }
    assert lint(Path("R")) == ()
    assert main(given) == 0
    assert [each["new"] for each in json.loads(capsys.readouterr().out)["models"]] == [False] * 4
    Path("hopper/model.plan").write_bytes(b"for 9.0, faster")
    assert main(given) == 0
    assert [each["version"] for each in json.loads(capsys.readouterr().out)["models"]] == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("told", "manifest", "message"),
    [
        ({"version": "10.14.1.48"}, {}, "other is of another TensorRT than ampere: 10.14.1.48, not 11.1.0.106."),
        ({"architecture": 80}, {}, "other is for compute capability 8.0, and so is an engine before it."),
        ({}, {"precision": {"requested": "fp16"}}, "other is of another precision than ampere: fp16, not fp32."),
        (
            {},
            {"inputs": {"checkpoint": {"sha256": "0123"}, "images": []}},
            "other is of another checkpoint than ampere: 0123, not random, seed 0.",
        ),
    ],
)
def test_engines_that_are_not_of_one_model_are_refused(
    once: Path,
    ampere: Path,
    capsys: pytest.CaptureFixture[str],
    told: dict[str, Any],
    manifest: dict[str, Any],
    message: str,
) -> None:
    with_engine(once, "other", **{"architecture": 90, "plan": b"", **told})
    changed(Path("other"), lambda content: content.update(manifest))
    assert error_of(capsys, "triton", "ampere", "other", "--repository", "R") == message
    assert not Path("R").exists()


def test_an_engine_of_another_model_is_refused(
    once_maps: Path, ampere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_engine(once_maps, "other", 90, b"")
    changed(Path("other"), lambda content: content["model"].update(image_size=[96, 64]))
    said = error_of(capsys, "triton", "ampere", "other", "--repository", "R")
    assert said == "other is of another image size than ampere: [96, 64], not [64, 64]."


def test_an_engine_that_a_server_cannot_run_is_refused(once: Path, capsys: pytest.CaptureFixture[str], ampere) -> None:
    stripped = with_engine(once, "stripped", 80, b"", strip_plan=True)
    said = error_of(capsys, "triton", str(stripped), "--repository", "R")
    assert said.startswith("hornet_test could not be served: 1/model.plan was built without its weights (--strip-plan)")
    assert not Path("R").exists()


def test_the_own_repository_of_an_export_with_an_engine_is_for_the_engine(ampere: Path) -> None:
    shutil.rmtree(ampere / "triton/hornet_test/warmup")  # that of the export goes, whatever became of it
    write_own_repository(ampere, read_spec(ampere), read_manifest(ampere))
    model = configs(ampere / "triton")["hornet_test"]
    assert (model.backend, model.max_batch_size) == ("tensorrt", 32)
    assert sorted(path.name for path in (ampere / "triton/hornet_test/1").iterdir()) == ["export.json", "model.plan"]
    assert (ampere / "triton/hornet_test/1/model.plan").samefile(ampere / "model.plan")
    assert lint(ampere / "triton") == ()
    assert list(ampere.glob(".*")) == []


def test_weights_beside_a_graph_are_carried_along(made: Path) -> None:
    def run(path: Path) -> np.ndarray:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"input": support.image(2, 3, 64, 64)})[0])

    wanted = run(made / "model.onnx")
    onnx.save(
        onnx.load(made / "model.onnx"),
        made / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    assert (made / "model.onnx").stat().st_size < (made / "model.onnx.data").stat().st_size
    for backend in ("onnxruntime", "python"):
        assert main(["triton", "made", "--repository", backend, "--backend", backend, "--no-measure"]) == 0
        assert np.array_equal(run(Path(backend) / "hornet_test/1/model.onnx"), wanted)
        assert lint(Path(backend)) == ()
    write_own_repository(made, read_spec(made), read_manifest(made))
    assert np.array_equal(run(made / "triton/hornet_test/1/model.onnx"), wanted)


def test_certain_versions_can_be_asked_for(made: Path) -> None:
    assert main(["triton", "made", "--repository", "R", "--no-measure"]) == 0
    (made / "model.onnx").write_bytes((made / "model.onnx").read_bytes() + b"\x12\x00")
    assert main(["triton", "made", "--repository", "R", "--no-measure", "--version-policy", "specific:1,2"]) == 0
    assert list(configs(Path("R"))["hornet_test"].version_policy.specific.versions) == [1, 2]
    assert lint(Path("R")) == ()


def test_a_failed_engine_for_another_gpu_is_refused(
    once: Path, ampere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hopper = with_engine(once, "hopper", 90, b"for 9.0")
    changed(hopper, lambda manifest: manifest.update(status="failed"))
    assert "hopper is marked failed" in error_of(capsys, "triton", "ampere", "hopper", "--repository", "R")


KUBERNETES = ["--storage", "pvc://models/repository", "--image", "registry.example.com/metaformer-export-serve:26.09"]


def test_manifests_scale_on_what_half_a_second_answers(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = json.loads(Path("made", "bench.json").read_text("utf-8"))
    for row in bench["results"]:
        row["median_ms"] = 25.0
    Path("made", "bench.json").write_text(json.dumps(bench), "utf-8")
    asked = ["triton", "made", "--repository", "R", "--no-measure", "--kserve", "K", *KUBERNETES, "--json"]
    assert main([*asked, "--replicas", "2:6", "--namespace", "vision"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["manifests"] == ["K/inferenceservice.yaml", "K/deployment.yaml", "K/prometheus-adapter.yaml"]
    deployment, service, scaler = yaml.safe_load_all(Path("K/deployment.yaml").read_text("utf-8"))
    assert [each["kind"] for each in (deployment, service, scaler)] == [
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
    ]
    assert {each["metadata"]["namespace"] for each in (deployment, service, scaler)} == {"vision"}
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 6)
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["target"]["averageValue"] == "20"  # 40 images a second
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"], "ONNX Runtime's backend was asked for no GPU"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--kserve", "K"], "--kserve needs --storage and --image"),
        (["--kserve", "K", *KUBERNETES[:2]], "--kserve needs --image"),
        (["--storage", "pvc://models"], "--storage is for the manifests; give --kserve FOLDER, too."),
        (["--kserve", "K", *KUBERNETES, "--replicas", "3"], "--replicas takes MIN:MAX"),
        (["--kserve", "K", *KUBERNETES, "--replicas", "3:1"], "replicas_max 1 is below replicas_min 3"),
        (["--kserve", "K", *KUBERNETES, "--memory", "lots"], "'lots' is not a quantity of Kubernetes"),
    ],
)
def test_manifests_that_cannot_be_are_refused_before_anything_is_added(
    made: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert message in error_of(capsys, "triton", "made", "--repository", "R", "--no-measure", *given)
    assert not Path("R").exists()
    assert not Path("K").exists()


def test_tensorrt_inside_onnx_runtime_gets_the_graph_that_is_quantised_for_it(made: Path) -> None:
    other = (made / "model.onnx").read_bytes() + b"\x12\x00"  # the producer's name once more
    (made / "model.tensorrt.onnx").write_bytes(other)
    added = ["triton", "made", "--no-measure", "--accelerator"]
    assert main([*added, "tensorrt", "--repository", "R"]) == 0
    assert Path("R/hornet_test/1/model.onnx").read_bytes() == other
    assert main([*added, "cuda", "--accelerator-option", "use_tf32=0", "--repository", "S"]) == 0
    assert Path("S/hornet_test/1/model.onnx").read_bytes() == (made / "model.onnx").read_bytes()
    (accelerator,) = configs(Path("S"))["hornet_test"].optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(accelerator.parameters) == {"use_tf32": "0"}


def test_a_setting_without_a_value_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--accelerator", "cuda", "--accelerator-option", "use_tf32"]
    said = error_of(capsys, "triton", "made", "--repository", "R", *given)
    assert said == "--accelerator-option takes KEY=VALUE, for instance use_tf32=0; got 'use_tf32'."

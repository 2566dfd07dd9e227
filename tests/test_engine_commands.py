# SPDX-License-Identifier: Apache-2.0
"""Engines as far as a machine without TensorRT or a GPU goes: what is asked for, what is said, what is left alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import support
from tensorrt_contract.harness import VERSIONS, run_in_bindings

from metaformer_export import engines, load_engine, rebuilding
from metaformer_export.artifacts import BenchReport, Candidate, ExportResult, Manifest, ParityReport
from metaformer_export.cli import main
from metaformer_export.engines import Source, _for_tensorrt, warnings_of
from metaformer_export.errors import EngineError, InputError, MissingDependencyError
from metaformer_export.export.lower import lower_all
from metaformer_export.export.ops.choosing import choose, parse_lowering
from metaformer_export.export.ops.mixer_op import DOMAIN
from metaformer_export.export.trace import Traced, trace
from metaformer_export.models import hornet, registry
from metaformer_export.models.family import BuildOptions
from metaformer_export.options import ENGINE_BATCH, ExportOptions
from metaformer_export.progress import Silent
from metaformer_export.rebuilding import with_engine
from metaformer_export.request import resolved
from metaformer_export.runtime.tensorrt import environment, loading
from metaformer_export.runtime.tensorrt.engine import Engine, EngineReport
from metaformer_export.runtime.tensorrt.environment import Environment
from metaformer_export.runtime.tensorrt.lint import lint
from metaformer_export.runtime.tensorrt.options import EngineOptions
from metaformer_export.runtime.tensorrt.target import plain_arithmetic
from metaformer_export.runtime.tensorrt.told import read_told

WAYS = ('pip install "metaformer-export[tensorrt]"', "docker run --gpus all metaformer-export:latest")
FAST = pytest.mark.usefixtures("small_models")


@pytest.fixture(scope="module")
def traced() -> Traced:
    module = support.fill_golden(hornet.HorNet(support.SMALL_GF, BuildOptions()))
    return trace(module, support.spec_for("hornet_test_gf"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was exported without an engine."""
    folder = tmp_path_factory.mktemp("engine") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FAMILIES", (support.small_family(),))
        assert main(["--model", "hornet_test", "--target", "onnx", "--no-triton", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def exported(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, below the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(once, tmp_path / "made"))


@FAST
@pytest.mark.parametrize("asked", [["--target", "tensorrt"], ["--no-tf32"], ["--workspace", "512", "--fp16"]])
def test_an_engine_without_tensorrt_is_exit_code_3_and_nothing_is_written(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", "hornet_test", *asked]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("metaformer-export: error: TensorRT is not installed; ")
    assert all(way in said for way in WAYS)
    assert list(tmp_path.iterdir()) == []


def test_building_in_a_folder_without_tensorrt_leaves_it_as_it_is(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert main(["build", "made"]) == 3
    said = capsys.readouterr().err
    assert all(way in said for way in WAYS)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


@pytest.mark.parametrize("version", VERSIONS)
def test_with_tensorrt_and_no_gpu_the_build_ends_with_our_message(version: str, exported: Path) -> None:
    code = f"""
from metaformer_export.cli import main
raise SystemExit(main(["build", {str(exported)!r}]))
"""
    done = run_in_bindings(version, code, timeout=120)
    assert done.returncode == 3, done.stderr
    assert f"TensorRT {version} is installed, but " in done.stderr
    assert all(way in done.stderr for way in WAYS)
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        ["bench.json", "manifest.json", "model.onnx", "parity.json", "report.html"]
    )


@FAST
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "hornet_test", "--target", "onnx", "--refit"], "options of an engine go with --target tensorrt"),
        (["--model", "hornet_test", "--lowering", "Fourier=plugin"], "OP one of GlobalFilter, BalancedClustering"),
        (["--model", "hornet_test", "--lowering", "LocalAttention=native"], "only GlobalFilter has operators"),
        (["--model", "hornet_test", "--optimization-level", "6"], "--optimization-level takes 0 to 5; got 6"),
        (["build", "nowhere"], "nowhere is no output folder of metaformer-export"),
        (["build", ".", "--batch", "8:1:2"], "--batch needs 1 <= MIN <= OPT <= MAX"),
    ],
)
def test_wrong_input_is_a_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in said


def test_an_engine_that_fails_parity_fails_the_export() -> None:
    """Not only a note: exit code 1, with the reason."""
    report = EngineReport(1, {}, {})
    engine = Engine(
        Path("model.plan"), "model.onnx", "11.4", "made up", 90, (), (1, 8, 32), EngineOptions(), 1.0, report
    )
    proof = ParityReport(True, "fp16", 1, "", (1,), (), (), {})
    for passed, failures in ((True, ()), (False, ("logits: rms_rel 0.5 > 0.01",))):
        candidate = Candidate("tensorrt", "fp16", "model.plan", {}, passed, failures=failures)
        bench = BenchReport("", 1, 1, (), None, candidates=(candidate,))
        spec = support.spec_for("hornet_test")
        result = ExportResult(Path("made"), spec, "fp16", proof, bench, Manifest({}), (), engine)
        assert result.passed is passed
        assert result.engine_failures == failures
        assert not result.lacks_only_an_engine, "another engine of the same file would not compute anything else"
        without = replace(result, engine=None, no_engine="out of memory")
        assert (without.passed, without.lacks_only_an_engine) == (False, True)


def test_a_folder_is_marked_failed_as_long_as_its_engine_is_not_what_was_asked_for() -> None:
    """Whoever deploys a folder looks at its status; a proof that had failed before stays failed."""

    def engine(computed: str) -> Engine:
        nodes = {"fp16": {computed: 3}}
        report = EngineReport(1, {"stages.0": {"fp16": 3}}, {"stages.0": {computed: 3}}, computed=nodes)
        return Engine(
            Path("model.plan"), "model.onnx", "11.4", "made up", 90, (), (1, 8, 32), EngineOptions(), 1.0, report
        )

    for status in ("passed", "failed"):
        manifest: dict[str, object] = {"status": status, "notes": ["kept"], "gpu": None, "tensorrt": None}
        seen = []
        for computed in ("fp16", "fp32", "fp32", "fp16"):
            manifest = with_engine(manifest, engine(computed))
            seen.append(manifest["status"])
        assert seen == [status, "failed", "failed", status]
        assert manifest["gpu"] == "made up"
        assert set(manifest) == {"status", "notes", "gpu", "tensorrt"}


def test_an_engine_that_is_not_there_says_what_makes_it(exported: Path) -> None:
    with pytest.raises(InputError, match=r"made/model.plan does not exist; metaformer-export build \S*made makes it"):
        load_engine(exported, runtime="tensorrt")


def test_inspect_says_what_a_folder_holds(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(exported)]) == 0
    said = capsys.readouterr().out
    assert "hornet_test" in said
    assert "model.onnx, " in said
    assert "status      passed" in said
    assert main(["inspect", str(exported), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensorrt"] is None


def test_inspect_shows_an_engine_group_by_group(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["tensorrt"] = {
        "version": "11.4.0.106",
        "gpu": "made up",
        "source": "model.onnx",
        "batch": [1, 8, 32],
        "report": {
            "layers": 7,
            "wanted": {"stages.0": {"fp16": 4}, "head": {"fp32": 1}},
            "got": {"stages.0": {"fp16": 2, "fp32": 1}},
            "fallen_back": [{"layer": "x", "modules": ["stages.0.mlp"], "wanted": "fp16"}],
            "reformats": 2,
            "casts": 0,
            "plugins": {"GlobalFilter": 3},
        },
    }
    (exported / "manifest.json").write_text(json.dumps(manifest))
    assert main(["inspect", str(exported)]) == 0
    said = capsys.readouterr().out
    assert "stages.0: asked for 4 fp16; computes 2 fp16, 1 fp32" in said
    assert "head: asked for 1 fp32; computes none" in said
    assert "7, 2 reformats, plugins 3 GlobalFilter" in said
    assert "stages.0.mlp: float32 instead of fp16" in said


def test_the_default_batch_is_for_an_engine_only_where_one_is_built() -> None:
    assert resolved(ExportOptions(model="hornet_t")).batch.usual == 1
    assert (ENGINE_BATCH.smallest, ENGINE_BATCH.usual, ENGINE_BATCH.largest) == (1, 8, 32)


def test_mixer_ops_are_plugins_unless_asked_otherwise(traced: Traced) -> None:
    assert choose(traced.model.graph, {}) == ({"GlobalFilter": "plugin"}, [])
    assert choose(traced.model.graph, {}, plugins=False) == ({"GlobalFilter": "portable"}, [])
    assert choose(traced.model.graph, dict([parse_lowering("GlobalFilter=native")]))[0] == {"GlobalFilter": "native"}


def test_a_map_that_a_kernel_cannot_take_goes_in_standard_operators_and_is_said() -> None:
    module = support.fill_golden(hornet.HorNet(support.SMALL_GF, BuildOptions()))
    wide = trace(module, support.spec_for("hornet_test_gf", (640, 640)))
    chosen, notes = choose(wide.model.graph, {})
    assert chosen == {"GlobalFilter": "portable"}
    assert notes == [
        "GlobalFilter goes to TensorRT in standard operators: GlobalFilter's kernel takes maps of at most 32x32, "
        "got 40x40."
    ]
    with pytest.raises(InputError, match=r"--lowering GlobalFilter=plugin cannot be: .* use GlobalFilter=portable"):
        choose(wide.model.graph, {"GlobalFilter": "plugin"})


@pytest.mark.parametrize("form", ["portable", "native"])
def test_the_form_for_tensorrt_computes_the_same_however_ops_are_lowered(traced: Traced, form: str) -> None:
    plugin, written = (lower_all(traced, ("plugin",), lowering)[0] for lowering in ({}, {"GlobalFilter": form}))
    ops = {node.op_type for node in written.model.graph}
    assert ("DFT" in ops) == (form == "native")
    assert not any(node.domain == DOMAIN for node in written.model.graph)
    x = support.image(2, 3, 224, 224)
    (want,), (got,) = (support.run_model(each.model, x) for each in (plugin, written))
    assert support.relative_error(got, want) <= 1e-5


def test_an_engine_is_built_from_the_file_that_is_for_tensorrt(traced: Traced) -> None:
    portable, plugin = lower_all(traced, ("portable", "plugin"))
    plain, with_plugins = Source(Path("model.onnx"), portable.model), Source(Path("model.plugin.onnx"), plugin.model)
    quantised = Source(Path("model.tensorrt.onnx"), portable.model)
    assert with_plugins.plugins == ("GlobalFilter",)

    def names(
        *files: Source,
        options: ExportOptions | None = None,
        version: tuple[int, ...] = (11, 4),
        architecture: int = 90,
    ) -> list[str]:
        found = Environment(version, "made up", architecture)
        return [each.name for each in _for_tensorrt(files, options or ExportOptions(), found)]

    assert names(plain) == ["model.onnx"]
    assert names(plain, with_plugins) == ["model.plugin.onnx", "model.onnx"]
    assert names(plain, with_plugins, version=(10, 8)) == ["model.onnx"]
    assert names(plain, with_plugins, architecture=75) == ["model.onnx"]
    assert names(plain, with_plugins, options=ExportOptions(plugins=False)) == ["model.onnx"]
    assert names(plain, with_plugins, options=ExportOptions(lowering={"GlobalFilter": "plugin"})) == [
        "model.plugin.onnx"
    ]
    assert names(plain, quantised) == ["model.tensorrt.onnx"]


@pytest.mark.parametrize("options", [ExportOptions(lowering={"GlobalFilter": "native"}), ExportOptions()])
def test_an_engine_is_built_of_what_an_op_was_asked_to_be_lowered_to(traced: Traced, options: ExportOptions) -> None:
    """Also by `build DIR`, which is not told again."""
    (portable,) = lower_all(traced, ("portable",))
    (native,) = lower_all(traced, ("plugin",), {"GlobalFilter": "native"})
    files = Source(Path("model.onnx"), portable.model), Source(Path("model.plugin.onnx"), native.model)
    (chosen,) = _for_tensorrt(files, options, Environment((11, 4), "made up", 90))
    assert sum(node.op_type == "DFT" for node in chosen.model.graph) >= 2
    assert {each.issue for each in lint(chosen.model, (11, 1), batch=(1, 8, 32))} >= {"dft"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT and a GPU as far as `environment` can tell, and a builder that runs out of memory."""
    for module in (environment, rebuilding, loading):
        monkeypatch.setattr(module, "environment", lambda: Environment((11, 4, 0, 106), "made up", 90))

    def build(source: Path, *_: object, **__: object) -> None:
        raise EngineError(f"TensorRT built no engine from {source.name}: out of memory")

    monkeypatch.setattr(engines, "build", build)


@FAST
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("target", "code", "status"), [("auto", 0, "passed"), ("tensorrt", 1, "failed")])
def test_where_no_engine_can_be_built_the_files_are_kept(
    target: str, code: int, status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `auto` the export goes on without one; who asked for one is told that it failed."""
    folder = tmp_path / "out"
    arguments = ["--model", "hornet_test", "--batch", "1", "--no-triton", "--output", str(folder)]
    assert main([*arguments, "--target", target]) == code
    said = capsys.readouterr().err
    assert "out of memory" in said
    assert ("the engine failed: " in said) == (target == "tensorrt")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == status
    assert sum("out of memory" in note for note in manifest["notes"]) == 1
    assert json.loads((folder / "parity.json").read_text())["passed"] is True
    assert manifest.get("status_before_engine") == ("passed" if target == "tensorrt" else None)
    assert (folder / "model.onnx").stat().st_size == manifest["outputs"]["model.onnx"]["bytes"]


def test_a_file_that_gives_no_engine_leaves_the_other(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    portable, plugin = lower_all(traced, ("portable", "plugin"))
    sources = [Source(Path("model.plugin.onnx"), plugin.model), Source(Path("model.onnx"), portable.model)]

    def made(source: Source, *_: object) -> str:
        if source.plugins:
            raise MissingDependencyError("Triton is not installed.")
        return source.name

    monkeypatch.setattr(engines, "_made", made)
    built, refused = engines._all_made(sources, ExportOptions(), Silent())
    assert built == ["model.onnx"]
    assert refused == ["The engine is not of model.plugin.onnx: Triton is not installed."]
    with pytest.raises(MissingDependencyError, match="Triton"):
        engines._all_made(sources[:1], ExportOptions(), Silent())


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("damage", ["no status", "no graph", "no engine"])
def test_building_in_a_damaged_folder_leaves_it_as_it_is(
    damage: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    (exported / "model.plan").write_bytes(b"the engine that was there")
    if damage == "no status":
        del manifest["status"]
    if damage == "no graph":
        (exported / "model.onnx").write_bytes(b"\x08damaged")
    (exported / "manifest.json").write_text(json.dumps(manifest))
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert main(["build", "made"]) == (1 if damage == "no engine" else 2)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert {"no status": "damaged", "no graph": "damaged", "no engine": "out of memory"}[damage] in said
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


@pytest.mark.usefixtures("gpu")
def test_a_new_engine_and_the_manifest_go_together(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill after the engine was put in place is found when it is loaded."""

    def built(sources: object, options: object, folder: Path, progress: object) -> Engine:
        (folder / "model.plan").write_bytes(b"new")
        report = EngineReport(1, {}, {})
        return Engine(
            folder / "model.plan",
            "model.onnx",
            "11.4.0.106",
            "made up",
            90,
            (),
            (1, 8, 32),
            EngineOptions(),
            1.0,
            report,
        )

    monkeypatch.setattr(rebuilding, "build_engine", built)
    engine = rebuilding.rebuild_engine(exported, ExportOptions(), Silent())
    assert engine.path.read_bytes() == b"new"
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["outputs"]["model.plan"] == {"sha256": sha256(b"new").hexdigest(), "bytes": 3}
    assert manifest["outputs"]["model.onnx"]["bytes"] == (exported / "model.onnx").stat().st_size
    assert not list(exported.glob(".engine-*"))
    proof = exported / "parity.json"
    assert manifest["outputs"]["parity.json"]["bytes"] == proof.stat().st_size
    proof.write_text(json.dumps(json.loads(proof.read_text()) | {"engine": {"passed": True}}))
    times = exported / "bench.json"
    bench = json.loads(times.read_text())
    on_host = len(bench["results"])
    assert on_host >= 2
    of_engine = {**bench["results"][-1], "runtime": "tensorrt", "file": "model.plan"}
    times.write_text(json.dumps(bench | {"results": [*bench["results"], of_engine]}))
    rebuilding.rebuild_engine(exported, ExportOptions(), Silent())
    assert "engine" not in json.loads(proof.read_text()), "it was of the engine before"
    assert json.loads(times.read_text()) == bench, "and so was the last row"
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["outputs"]["bench.json"]["bytes"] == times.stat().st_size
    engine.path.write_bytes(b"newer")
    with pytest.raises(EngineError, match=r"model.plan is not the engine that the manifest tells of; build it again"):
        load_engine(exported, runtime="tensorrt")


TOLD = {
    "path": "model.plan",
    "source": "model.onnx",
    "version": "11.4.0.106",
    "gpu": "made up",
    "architecture": 90,
    "plugins": [],
    "batch": [1, 8, 32],
    "options": {"tf32": False, "of_a_later_release": 1},
}


def test_building_again_goes_by_what_the_export_was_asked_for(
    gpu: None, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert (manifest["lowering"], manifest["triton"]) == ({}, False)
    (exported / "manifest.json").write_text(json.dumps(manifest | {"lowering": {"GlobalFilter": "plugin"}}))
    asked = []

    def built(sources: object, options: ExportOptions, *_: object) -> None:
        asked.append(options.lowering)
        raise EngineError("out of memory")

    monkeypatch.setattr(rebuilding, "build_engine", built)
    with pytest.raises(EngineError):
        rebuilding.rebuild_engine(exported, ExportOptions(), Silent())
    assert asked == [{"GlobalFilter": "plugin"}]


def test_only_gpus_that_have_tf32_are_held_to_its_limits() -> None:
    assert plain_arithmetic(EngineOptions(), 80) == "tf32"
    assert plain_arithmetic(EngineOptions(), 75) == "fp32"
    assert plain_arithmetic(EngineOptions(tf32=False), 90) == "fp32"


@FAST
def test_who_sets_options_of_an_engine_is_told_that_there_is_none(
    gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "hornet_test", "--batch", "1", "--no-triton", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--no-tf32"]) == 1
    assert "the engine failed: TensorRT built no engine from model.onnx: out of memory" in capsys.readouterr().err


def test_what_a_manifest_says_of_an_engine_is_read_back() -> None:
    told = read_told(TOLD)
    assert (told.options.tf32, told.options.cuda_graph, told.batch) == (False, False, (1, 8, 32))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in TOLD if key not in ("path", "source", "gpu", "version")),
        ("version", "new"),
        ("architecture", "x"),
        ("batch", [1, 8]),
        ("options", {"optimization_level": "high"}),
        ("options", {"tiling": "fastest"}),
    ],
)
def test_a_damaged_entry_is_one_line_with_the_way_out(key: str, value: object) -> None:
    with pytest.raises(InputError) as raised:
        read_told({**TOLD, key: value})
    if key != "options" or value is None:
        assert str(raised.value).endswith("build it again: metaformer-export build DIR.")
    assert "\n" not in str(raised.value)
    without = {name: each for name, each in TOLD.items() if name != key}
    with pytest.raises(InputError, match="build it again: metaformer-export build DIR"):
        read_told(without)


def test_a_known_issue_is_told_once_with_the_number_of_its_places(traced: Traced) -> None:
    (plugin,) = lower_all(traced, ("plugin",))
    findings = lint(plugin.model, (11, 1), batch=(1, 8, 32))
    (text,) = warnings_of(findings)
    assert text.startswith("GlobalFilter of stages.2.0.gnconv.dwconv leaks GPU memory")
    assert text.endswith(" 1 more like it.")
    assert warnings_of(lint(plugin.model, (11, 1), batch=(8, 8, 8))) == []

# SPDX-License-Identifier: Apache-2.0
"""Every rule of the linter finds its fault in a repository that is right but for one thing, and nothing else does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import repositories
from google.protobuf import text_format
from repositories import deployable, edit, written
from repository_faults import FAULTS, Fault, engine_told, gone, reshaped
from tritonclient.grpc import model_config_pb2 as schema

from metaformer_export.cli import main
from metaformer_export.errors import InputError
from metaformer_export.runtime.triton.lint import RULES, lint
from metaformer_export.runtime.triton.options import RepositoryOptions

KINDS = ("tensorrt", "onnxruntime", "python", "maps", "float16", "engines", "unlabelled", "everything")
EVERYTHING = RepositoryOptions(response_cache=True, cuda_graphs=True, versions="specific:1")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository of each kind."""
    folder = tmp_path_factory.mktemp("lint")
    made = {
        "tensorrt": deployable(folder / "files" / "tensorrt", "tensorrt"),
        "onnxruntime": deployable(folder / "files" / "onnxruntime"),
        "python": deployable(folder / "files" / "python", "python"),
        "maps": deployable(folder / "files" / "maps", "python", features=True),
        "float16": deployable(folder / "files" / "float16", data_type="FP16"),
        "engines": repositories.two_engines(folder / "files" / "engines"),
        "unlabelled": replace(deployable(folder / "files" / "unlabelled"), labels=()),
        "everything": deployable(folder / "files" / "everything", "tensorrt"),
    }
    for name, each in made.items():
        written(each, folder / name, EVERYTHING if name == "everything" else None)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_this_tool_writes_is_right(valid: Path, kind: str) -> None:
    assert lint(valid / kind) == ()


@pytest.mark.parametrize("case", FAULTS, ids=str)
def test_a_fault_is_found_by_its_rule_and_by_no_other(
    valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Fault
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(valid / case.kind, "R")
    case.spoil(Path("R"))
    found = lint(Path("R"))
    assert [(each.model, each.rule) for each in found] == [(model, case.rule) for model, _ in case.findings]
    for each, (_, text) in zip(found, case.findings, strict=True):
        assert text in each.text


def test_every_rule_has_a_failing_example() -> None:
    assert {each.rule for each in FAULTS} == {"schema", *RULES}


def test_dynamic_batching_without_batches_is_found(valid: Path, tmp_path: Path) -> None:
    """With it go the sizes of everything else: no other rule can be kept quiet."""
    repository = shutil.copytree(valid / "onnxruntime", tmp_path / "R")
    edit(repository / "small", lambda config: setattr(config, "max_batch_size", 0))
    texts = [each.text for each in lint(repository) if each.rule == "batch-sizes" and each.model == "small"]
    assert texts[0] == "dynamic batching needs a max_batch_size of 1 or more"
    sizes = [each.text for each in lint(repository) if each.rule == "tensors"]
    assert sizes == [
        "input images is [3, 24, 32], in version 1 [-1, 3, 24, 32]",
        "output logits is [10], in version 1 [-1, 10]",
    ]


@pytest.mark.parametrize("which", ["taken", "made"])
def test_a_size_that_may_be_any_goes_with_every_size_in_an_ensemble(valid: Path, tmp_path: Path, which: str) -> None:
    """As in the server, which looks at the sizes again with each request."""
    repository = shutil.copytree(valid / "tensorrt", tmp_path / "R")
    (repository / "small/1/export.json").unlink()
    if which == "made":
        edit(repository / "small_preprocess", lambda config: reshaped(config.output[0], -1, -1))
    else:
        edit(repository / "small", lambda config: reshaped(config.input[0], -1, -1))
    assert lint(repository) == ()


def test_the_order_of_steps_does_not_matter(valid: Path, tmp_path: Path) -> None:
    def turn(config: Any) -> None:
        steps = list(config.ensemble_scheduling.step)
        del config.ensemble_scheduling.step[:]
        config.ensemble_scheduling.step.extend(reversed(steps))

    repository = shutil.copytree(valid / "onnxruntime", tmp_path / "R")
    edit(repository / "small_ensemble", turn)
    assert lint(repository) == ()


def test_an_old_name_of_the_tensorrt_backend_is_known(valid: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(valid / "tensorrt", tmp_path / "R")
    edit(repository / "small", lambda config: setattr(config, "backend", ""))
    assert lint(repository) == ()
    (repository / "small/1/model.plan").unlink()
    assert [each.text for each in lint(repository)] == ["version 1 has no model.plan"]


@pytest.mark.parametrize("version", ["10.9.0.34", "10.14.1.48.post1", "11.1.0.106"])
def test_plugins_of_engines_that_carry_their_kernels_are_right(valid: Path, tmp_path: Path, version: str) -> None:
    repository = shutil.copytree(valid / "tensorrt", tmp_path / "R")
    engine_told(version=version, plugins=["GlobalFilter"])(repository)
    assert lint(repository) == ()


@pytest.mark.parametrize(
    ("policy", "looked_at"),
    [
        ("", [10]),
        ("latest { num_versions: 1 }", [10]),
        ("latest { num_versions: 2 }", [2, 10]),
        ("all { }", [1, 2, 10]),
        ("specific { versions: [1, 10] }", [1, 10]),
    ],
)
def test_the_versions_that_a_server_has_ready_are_looked_at(
    valid: Path, tmp_path: Path, policy: str, looked_at: list[int]
) -> None:
    """A profile of an older engine may end below what the newest one takes."""
    repository = shutil.copytree(valid / "tensorrt", tmp_path / "R")
    engine_told(batch=[1, 2, 4])(repository)
    for version in (2, 10):
        shutil.copytree(repository / "small/1", repository / "small" / str(version))

    def set_policy(config: Any) -> None:
        config.version_policy.CopyFrom(text_format.Parse(policy, schema.ModelVersionPolicy()))

    edit(repository / "small", set_policy)
    assert [each.text for each in lint(repository)] == [
        f"max_batch_size is 8, and the profile of {version}/model.plan ends at 4" for version in looked_at
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"5",
        b"{}",
        b'{"inputs": [{}], "outputs": [], "engines": {}}',
        b'{"inputs": [], "outputs": [], "engines": {"model.plan": {"batch": [1, 8]}}}',
        b'{"inputs": [], "outputs": [], "engines": {"model.plan": {"batch": [1, 8, 8], "version": null}}}',
        b"\xff",
    ],
)
def test_a_damaged_export_json_is_said_in_one_line(valid: Path, tmp_path: Path, content: bytes) -> None:
    repository = shutil.copytree(valid / "tensorrt", tmp_path / "R")
    (repository / "small/1/export.json").write_bytes(content)
    found = lint(repository)
    assert {each.model for each in found} == {"small"}
    assert all(f"{repository}/small/1/export.json is damaged: " in each.text for each in found)
    assert not any("\n" in each.text for each in found)


def test_a_file_that_is_no_model_is_found(valid: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(valid / "onnxruntime", tmp_path / "R")
    (repository / "small/1/model.onnx").write_bytes(b"no model")
    found = lint(repository)
    assert {(each.model, each.rule) for each in found} == {("small", "tensors"), ("small", "batch-dimension")}
    assert all("model.onnx is no ONNX file" in each.text for each in found)


def test_an_output_without_any_dimension_is_found(valid: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(valid / "onnxruntime", tmp_path / "R")
    made = repositories.graph()
    del made.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(made, repository / "small/1/model.onnx")
    assert [(each.rule, each.text) for each in lint(repository)] == [
        ("tensors", "output logits is [10], in version 1 []"),
        ("batch-dimension", "max_batch_size is 8, but logits of version 1 has no batch"),
    ]


def test_labels_in_any_encoding_are_counted(valid: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(valid / "onnxruntime", tmp_path / "R")
    (repository / "small/labels.txt").write_bytes(b"cr\xe8me\xa0\x85\r\n" * 10)
    assert lint(repository) == ()


def test_what_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is no folder; give a Triton model repository\."):
        lint(tmp_path / "nowhere")
    (tmp_path / "README").touch()
    with pytest.raises(InputError, match=r"has no models; metaformer-export triton DIR --repository .* adds one\."):
        lint(tmp_path)


def test_the_command_says_that_nothing_is_wrong(
    valid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(valid)
    assert main(["lint", "tensorrt"]) == 0
    assert capsys.readouterr().out == "tensorrt: nothing that a server would refuse\n"
    assert main(["lint", "tensorrt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_command_ends_with_1_and_a_line_for_each_finding(
    valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(valid / "tensorrt", "R")
    gone("small/labels.txt")(Path("R"))
    engine_told(batch=[1, 2, 4])(Path("R"))
    texts = {
        "profile": "max_batch_size is 8, and the profile of 1/model.plan ends at 4",
        "labels": "output logits is named by labels.txt, which is not there",
    }
    assert main(["lint", "R"]) == 1
    assert capsys.readouterr().out == "".join(f"small: {text} [{rule}]\n" for rule, text in texts.items())
    assert main(["lint", "R", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == [{"model": "small", "rule": rule, "text": text} for rule, text in texts.items()]


def test_the_command_ends_with_2_where_there_is_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["lint", "nowhere"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "metaformer-export: error: nowhere is no folder; give a Triton model repository.\n"

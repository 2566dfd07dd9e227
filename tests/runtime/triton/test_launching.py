# SPDX-License-Identifier: Apache-2.0
"""What a server is started with: what a repository needs, the arguments, the container; and what its log says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from toy_repository import write_toys

from metaformer_export.errors import MissingDependencyError
from metaformer_export.runtime.triton.containers import IMAGE, NEWEST
from metaformer_export.runtime.triton.docker import docker_commands
from metaformer_export.runtime.triton.launching import ServerOptions, command_line
from metaformer_export.runtime.triton.needs import Needs, find_repository, needs_of
from metaformer_export.runtime.triton.server import failures_of_log

ROOT = Path(__file__).resolve().parents[3]


def test_what_a_log_says_of_failures_is_read() -> None:
    """Also of a model that has no version, and without the quotes of newer logs."""
    none = "at least one version must be available"
    needed = "ensemble 'a_ensemble' depends on 'a' which has no loaded version"
    manager, life = ("E1123 00:01:20.9 1 model_" + name for name in ("repository_manager.cc:724]", "lifecycle.cc:642]"))
    lines = [
        f"{manager} \"failed to load model 'a': {none}\"",
        f"{manager} \"Invalid argument: {needed}. Model 'a' loading failed with error: {none}\"",
        f"{life} failed to load 'b' version 2: Internal: engine is of TensorRT 10",
        f"I{life[1:]} \"failed to load 'c' version 1: an information, not an error\"",
        'E1123 00:01:20.9 1 server.cc:241] "CudaDriverHelper has not been initialized."',
    ]
    assert failures_of_log(lines) == {
        "a": none,
        "a_ensemble": f"Invalid argument: {needed}",
        "b": "Internal: engine is of TensorRT 10",
    }


def test_the_dockerfile_has_what_the_build_command_names() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert f"FROM {IMAGE}:${{RELEASE}}-py3 AS serve" in lines
    assert any(line.startswith("ARG RELEASE=") for line in lines)


@pytest.mark.parametrize(
    ("needs", "image", "options"),
    [
        (Needs(("m",)), f"{IMAGE}:{NEWEST}", []),
        (Needs(("m",), ("10.14.1.48",), gpu=True), f"{IMAGE}:25.12-py3", ["--gpus", "all"]),
        (Needs(("m",), ("10.12.0.36",), version_compatible=True, gpu=True), f"{IMAGE}:25.08-py3", ["--gpus", "all"]),
        (Needs(("m",), ("11.1.0.106",), python=True, gpu=True), "metaformer-export-serve:26.07", ["--gpus", "all"]),
        (Needs(("m",), gpu_if_any=True), f"{IMAGE}:{NEWEST}", []),
    ],
)
def test_the_container_has_the_tensorrt_of_the_engines(
    needs: Needs, image: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # without nvidia-smi there is no GPU
    commands = docker_commands(Path("/r"), needs, ServerOptions(host="0.0.0.0"))
    run = shlex.split(commands.run)
    assert run[:3] + run[3 : 3 + len(options)] == ["docker", "run", "--rm", *options]
    assert image in run
    assert [each for each in run if ":800" in each] == ["8000:8000", "8001:8001", "8002:8002"]
    assert ("--backend-config=tensorrt,version-compatible=true" in run) == needs.version_compatible
    assert bool(commands.build) == needs.python


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (("10.12.0.36",), "no container of tritonserver is known to have the engine's TensorRT, 10.12.0.36; build the"),
        (
            ("10.14.1.48", "11.1.0.106"),
            "the engines were built by TensorRT 10.14.1.48 and 11.1.0.106, and a server has",
        ),
    ],
)
def test_engines_that_no_container_can_load_are_an_error_that_helps(versions: tuple[str, ...], message: str) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        docker_commands(Path("/r"), Needs(("m",), versions, gpu=True), ServerOptions())
    assert str(caught.value).startswith(message)


def test_what_a_repository_needs_is_read_from_its_configurations(tmp_path: Path) -> None:
    repository = write_toys(tmp_path / "triton", "toy_scorer")
    assert needs_of(find_repository(tmp_path)) == Needs(("toy_scorer",), python=True)
    version = repository / "engine" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text('platform: "tensorrt_plan"\nresponse_cache { enable: true }\n')
    engine = {"version": "10.14.1.48", "batch": [1, 8, 32], "options": {"version_compatible": True}}
    (version / "export.json").write_text(json.dumps({"inputs": [], "outputs": [], "engines": {"model.plan": engine}}))
    (repository / "unread").mkdir()
    (repository / "unread" / "config.pbtxt").write_text("nonsense: {")
    (repository / "auto" / "1").mkdir(parents=True)
    (repository / "auto" / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    found = needs_of(find_repository(repository))
    assert found == Needs(
        ("auto", "engine", "toy_scorer", "unread"),
        tensorrt=("10.14.1.48",),
        version_compatible=True,
        python=True,
        gpu=True,
        gpu_if_any=True,
        response_cache=True,
    )
    command = command_line(Path("/server"), repository, found, ServerOptions(extra=("--log-verbose=1",)))
    assert command[0] == "/server"
    assert command[-4:] == [
        f"--model-repository={repository}",
        "--cache-config=local,size=67108864",
        "--backend-config=tensorrt,version-compatible=true",
        "--log-verbose=1",
    ]
    assert "--http-address=127.0.0.1" in command
    own = ServerOptions(extra=("--cache-config=redis,host=here",))
    assert [each for each in command_line(Path("/server"), repository, found, own) if "cache" in each] == list(
        own.extra
    )

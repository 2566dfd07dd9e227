# SPDX-License-Identifier: Apache-2.0
"""serve and classify, with a real server; and what serve says where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from install_tritonserver import TRITONSERVER
from served_command import PATIENCE_S, descendants, free_ports, serving, wait_for
from toy_repository import best_of, write_toys
from tritonserver import Server, needs_tritonserver, running

from metaformer_export.cli import main
from metaformer_export.errors import InputError
from metaformer_export.runtime.triton import launching
from metaformer_export.runtime.triton.client import Client
from metaformer_export.runtime.triton.containers import NEWEST
from metaformer_export.runtime.triton.launching import ServerOptions, check_ports

ROOT = Path(__file__).resolve().parent.parent
IMPORT_ERROR = "import nothing_of_that_name\n"
STUCK = """
import time


class TritonPythonModel:
    def initialize(self, args):
        time.sleep(60)
"""


@pytest.fixture
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a tritonserver, and without a GPU."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(launching, "_INSTALLED", tmp_path / "tritonserver")


@needs_tritonserver
def test_a_server_is_started_used_and_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With an answer from its cache, and a model that is added while it runs."""
    repository = write_toys(tmp_path / "made" / "triton", "toy_scorer")
    config = repository / "toy_scorer" / "config.pbtxt"
    config.write_text(config.read_text() + "response_cache { enable: true }\n")
    image = tmp_path / "image.jpg"
    image.write_bytes(b"abc")
    with serving(tmp_path / "made", tmp_path / "err", "--poll", "1", "--", "--log-verbose=1") as served:
        http, _, metrics = served.ports
        assert served.lines == [
            "model       version  state",
            "toy_scorer        1  ready",
            f"listening on http://127.0.0.1:{http}, gRPC {served.grpc}, metrics http://127.0.0.1:{metrics}/metrics; "
            "Ctrl-C stops it",
        ]
        for _ in range(2):
            assert main(["classify", "--url", served.grpc, "--model", "toy_scorer", "--top", "2", str(image)]) == 0
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=PATIENCE_S) as answer:
            assert 'nv_cache_num_hits_per_model{model="toy_scorer",version="1"} 1\n' in answer.read().decode()
        write_toys(repository, "plain")
        with Client(served.grpc) as client:
            wait_for(lambda: client.ready("plain"))
        assert served.end(signal.SIGINT) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"{'image':{len(str(image))}s}    score      id  class",
        f"{image}   50.0 %       3  kind 3",
        f"{' ' * len(str(image))}   25.0 %       4  kind 4",
    ]
    assert "Traceback" not in served.errors.read_text()


@needs_tritonserver
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_ends_the_server_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    with serving(write_toys(tmp_path / "r", "plain"), tmp_path / "err", "--json") as served:
        facts = json.loads("\n".join(served.lines))
        assert facts["grpc"] == served.grpc
        assert facts["models"] == [{"name": "plain", "version": "1", "state": "READY", "reason": ""}]
        assert served.end(number) == 0


@needs_tritonserver
def test_ctrl_c_while_models_load_ends_the_server_soon(tmp_path: Path) -> None:
    repository = write_toys(tmp_path / "r", "plain")
    (repository / "plain" / "1" / "model.py").write_text(STUCK)

    def loading(lines: list[str]) -> bool:
        return any("plain_0" in line for line in lines)

    with serving(repository, tmp_path / "err", "--verbose", until=loading) as served:
        assert served.end(signal.SIGINT) == 130
    assert served.errors.read_text().splitlines()[-1].startswith("metaformer-export: error: interrupted")


@needs_tritonserver
def test_a_server_that_ends_by_itself_is_exit_code_1(tmp_path: Path) -> None:
    with serving(write_toys(tmp_path / "r", "plain"), tmp_path / "err") as served:
        for child in descendants(served.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        assert served.process.wait(PATIENCE_S) == 1
    assert "metaformer-export: error: the server ended by SIGKILL: " in served.errors.read_text()


@needs_tritonserver
def test_every_model_that_fails_is_a_line_with_the_reason_of_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = write_toys(tmp_path / "r")
    (repository / "toy_scorer" / "1" / "model.py").write_text(IMPORT_ERROR)
    (repository / "toy" / "config.pbtxt").write_text("nonsense: {")
    http, grpc, metrics = free_ports()
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    before = descendants(os.getpid())  # multiprocessing keeps one, once it was used
    assert main(["serve", str(repository), "--server", str(TRITONSERVER), *ports]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert descendants(os.getpid()) == before
    lines = [line for line in captured.err.splitlines() if line.startswith("metaformer-export: ")]
    told = dict(line.removeprefix("metaformer-export: model ").split(" was not loaded: ") for line in lines[:-1])
    assert told == {
        "toy": f"failed to read text proto from {repository}/toy/config.pbtxt",
        "toy_scorer": "Internal: ModuleNotFoundError: No module named 'nothing_of_that_name'",
        "toy_ensemble": "Invalid argument: ensemble 'toy_ensemble' depends on 'toy_scorer' which has no loaded version",
    }
    assert lines[-1].startswith("metaformer-export: error: the server was stopped")


@needs_tritonserver
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timeout", "0.01"], "the server was not ready within 0.01 s; --timeout gives it longer"),
        (["--", "--nonsense=1"], "the server ended with exit code 1: "),
    ],
)
def test_a_server_that_does_not_start_is_a_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    http, grpc, metrics = free_ports()
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    repository = write_toys(tmp_path / "r", "plain")
    before = descendants(os.getpid())
    assert main(["serve", str(repository), "--server", str(TRITONSERVER), *ports, *arguments]) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in said
    assert descendants(os.getpid()) == before


def test_a_port_that_is_taken_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    http, grpc, metrics = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", grpc))
        taken.listen()
        ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
        assert main(["serve", str(write_toys(tmp_path / "r", "plain")), "--server", sys.executable, *ports]) == 2
    assert f"cannot listen on 127.0.0.1:{grpc} (Address already in use); give another --grpc-port" in (
        capsys.readouterr().err
    )
    check_ports(ServerOptions("127.0.0.1", http, grpc, metrics))
    with pytest.raises(InputError, match=r"cannot listen on 203\.0\.113\.1:"):
        check_ports(ServerOptions("203.0.113.1", http, grpc, metrics))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["empty"], "empty is no model repository and has none in triton/"),
        (["r", "--server", "missing"], "--server missing is no program"),
        (["r", "--http-port", "9000", "--grpc-port", "9000"], "must differ"),
        (["r", "--http-port", "0"], "0 is not in the range 1<=x<=65535"),
        (["r", "--", "--http-port=1"], "--http-port goes before --"),
        (["r", "other"], "what follows -- is for tritonserver, whose arguments start with --; got other"),
    ],
)
def test_wrong_input_to_serve_is_a_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_toys(tmp_path / "r", "plain")
    assert main(["serve", *arguments]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


@pytest.mark.usefixtures("no_server")
def test_without_a_server_the_docker_commands_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = write_toys(tmp_path / "with space" / "triton")
    arguments = ["serve", str(tmp_path / "with space"), "--grpc-port", "9001", "--poll", "5", "--", "--log-verbose=1"]
    assert main(arguments) == 3
    captured = capsys.readouterr()
    build, run = (shlex.split(line) for line in captured.out.splitlines())
    month = NEWEST.removesuffix("-py3")
    image = f"metaformer-export-serve:{month}"
    assert build == ["docker", "build", "--target", "serve", "--build-arg", f"RELEASE={month}", "-t", image, str(ROOT)]
    assert run == [
        *("docker", "run", "--rm", "-p", "127.0.0.1:8000:8000", "-p", "127.0.0.1:9001:8001"),
        *("-p", "127.0.0.1:8002:8002", "--shm-size", "1g", "-v", f"{repository}:/models:ro", image),
        *("tritonserver", "--model-repository=/models", "--model-control-mode=poll", "--repository-poll-secs=5"),
        "--log-verbose=1",
    ]
    assert captured.err.startswith("metaformer-export: error: there is no tritonserver here")
    assert main([*arguments[:2], "--docker", "--json"]) == 0
    assert shlex.split(json.loads(capsys.readouterr().out)["build"]) == build


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(write_toys(tmp_path_factory.mktemp("toys"), "toy_scorer", "toy_ensemble")) as started:
        yield started


@needs_tritonserver
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_images_that_fail_are_named_and_the_others_classified(
    server: Server, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cat.jpg").write_bytes(b"cat")
    Path("bad.jpg").write_bytes(b"bad")
    asked = ["classify", "--url", getattr(server, protocol), "--protocol", protocol, "--model", "toy"]
    assert main([*asked, "--json", "cat.jpg", "bad.jpg", "none.jpg"]) == 1
    captured = capsys.readouterr()
    why = [
        "in ensemble 'toy_ensemble', image 0 of 1 cannot be decoded: it is bad",
        "cannot be read: No such file or directory",
    ]
    assert json.loads(captured.out) == {
        "url": getattr(server, protocol),
        "model": "toy",
        "images": [
            {
                "image": "cat.jpg",
                "classes": [
                    {"label": label, "class_id": number, "score": score} for label, number, score in best_of(b"cat")
                ],
                "error": "",
            },
            {"image": "bad.jpg", "classes": [], "error": why[0]},
            {"image": "none.jpg", "classes": [], "error": why[1]},
        ],
    }
    assert captured.err.splitlines() == [
        f"metaformer-export: bad.jpg: {why[0]}",
        f"metaformer-export: none.jpg: {why[1]}",
    ]
    assert main([*asked, "cat.jpg", "--top", "1"]) == 0
    assert capsys.readouterr() == ("image      score      id  class\ncat.jpg   50.0 %       3  kind 3\n", "")


@needs_tritonserver
def test_an_unknown_model_is_a_line_that_names_those_there_are(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", "--url", server.grpc, "--model", "horse", str(tmp_path / "a.jpg")]) == 1
    said = f"there is no model horse at {server.grpc}; it serves toy_ensemble, toy_scorer."
    assert capsys.readouterr() == ("", f"metaformer-export: error: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--url", "127.0.0.1:1", "--model", "m", "a.jpg"], 1, "no Triton server answers at 127.0.0.1:1 over gRPC ("),
        (["--url", "localhost", "--model", "m", "a.jpg"], 2, "localhost has no port"),
        (["--url", "localhost:8001", "--model", "m"], 2, "Missing argument 'IMAGE...'"),
        (["--url", "localhost:8001", "--model", "m", "--top", "0", "a.jpg"], 2, "0 is not in the range x>=1"),
    ],
)
def test_wrong_input_to_classify_is_a_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", *arguments]) == code
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said

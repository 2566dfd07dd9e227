# SPDX-License-Identifier: Apache-2.0
"""The server that other tests run: it answers, says why it does not start, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonserver import DidNotStartError, Server, needs_tritonserver, running

pytestmark = needs_tritonserver

_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each + np.float32(1))]) for each in values]
"""
_CONFIG = """
backend: "python"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }
"""


def _repository(folder: Path, code: str = _MODEL) -> Path:
    """A repository of one model, `add_one`."""
    version = folder / "add_one" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code, "utf-8")
    (version.parent / "config.pbtxt").write_text(_CONFIG, "utf-8")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(_repository(tmp_path_factory.mktemp("repository"))) as server:
        yield server


def _processes_of_group(group: int) -> list[int]:
    """Processes of a group that run, which those that have ended and wait for their parent do not."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text("utf-8").rpartition(")")[2].split()[:3]
        except OSError:  # it has ended since
            continue
        if int(of_group) == group and state != "Z":
            found.append(int(folder.name))
    return found


def test_server_answers_the_right_numbers_over_grpc(server: Server) -> None:
    x = np.array([[1, 2, 3], [-4, 0.5, 1e6]], np.float32)  # rows and elements differ, which NumPy 2 would get wrong
    given = tritonclient.grpc.InferInput("x", x.shape, "FP32")
    given.set_data_from_numpy(x)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        y = client.infer("add_one", [given]).as_numpy("y")
    assert y.dtype == np.float32
    assert np.array_equal(y, x + 1)


def test_server_answers_the_right_numbers_over_http(server: Server) -> None:
    x = np.array([[7, -1, 0.25]], np.float32)
    given = tritonclient.http.InferInput("x", x.shape, "FP32")
    given.set_data_from_numpy(x)
    with tritonclient.http.InferenceServerClient(server.http) as client:
        y = client.infer("add_one", [given]).as_numpy("y")
    assert np.array_equal(y, x + 1)


def test_server_says_that_it_is_ready(server: Server) -> None:
    assert server.alive()
    assert server.answers("v2/health/ready")
    assert server.answers("v2/models/add_one/ready")
    assert not server.answers("v2/models/add_two/ready")
    assert "successfully loaded 'add_one'" in server.log()


def test_server_reports_metrics_at_its_own_address(server: Server) -> None:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=5) as response:
        text = response.read().decode()
    assert 'nv_inference_pending_request_count{model="add_one",version="1"} 0\n' in text


def test_models_do_not_see_the_packages_of_the_tests(tmp_path: Path) -> None:
    code = "import sys, numpy\nprint('numpy', numpy.__version__, numpy.__file__, flush=True)\nimport torch\n" + _MODEL
    with (
        pytest.raises(DidNotStartError, match="No module named 'torch'") as raised,
        running(_repository(tmp_path, code)),
    ):
        pass
    assert raised.value.code == 1
    assert "numpy 1.26." in str(raised.value)
    assert "/tritonserver/python/lib/" in str(raised.value)


def test_a_stopped_server_leaves_no_process_and_no_memory(tmp_path: Path) -> None:
    with running(_repository(tmp_path)) as server:
        group = server.process.pid
        assert len(_processes_of_group(group)) == 2  # the server and the model
        regions = list(Path("/dev/shm").glob(f"{server.log_file.stem}*"))
        assert len(regions) == 1
    assert not server.alive()
    assert server.process.returncode == 0
    assert _processes_of_group(group) == []
    assert not regions[0].exists()


def test_a_killed_server_leaves_no_process_and_no_memory(tmp_path: Path) -> None:
    with running(_repository(tmp_path)) as server:
        regions = list(Path("/dev/shm").glob(f"{server.log_file.stem}*"))
        group = _processes_of_group(server.process.pid)
        (model,) = set(group) - {server.process.pid}
        os.kill(model, signal.SIGSTOP)  # else it may see by itself that the server has gone, and end before it is seen
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
        assert regions[0].exists()
        assert _processes_of_group(server.process.pid) == [model]
    deadline = time.monotonic() + 5
    while _processes_of_group(server.process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)  # a signal takes its time
    assert _processes_of_group(server.process.pid) == []
    assert not regions[0].exists()


def test_a_server_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    code = "import time\nprint('waits', flush=True)\ntime.sleep(60)\n" + _MODEL
    with (
        pytest.raises(DidNotStartError, match="did not answer v2/health/ready within 2 s") as raised,
        running(_repository(tmp_path, code), timeout=2),
    ):
        pass
    assert raised.value.code is None
    assert "loading: add_one:1" in str(raised.value)


def test_a_live_server_may_have_models_that_failed(tmp_path: Path) -> None:
    repository = _repository(tmp_path, "raise ValueError('weights are missing')\n")
    with running(repository, "--exit-on-error=false", until="live") as server:
        assert server.alive()
        assert not server.answers("v2/health/ready")
        assert "UNAVAILABLE: Internal: ValueError: weights are missing" in server.log()

# SPDX-License-Identifier: Apache-2.0
"""A real Triton Inference Server for the time of a test, on the loopback address and free ports.

Where install_tritonserver.py has not installed it, such tests are skipped; where CI is set they fail, as they would be
forgotten there, unless there is none for this Python.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from install_tritonserver import TRITONSERVER, exists

_MISSING = "no Triton Inference Server; python tests/install_tritonserver.py installs it."

_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")

needs_tritonserver = pytest.mark.skipif(not TRITONSERVER.is_file() and not (_CI and exists()), reason=_MISSING)

_POLL = 0.05
"""Seconds between two looks at a server that starts."""

_PATIENCE = 15
"""Seconds that a server has to end by itself, of which it gives 5 to requests under way."""


class DidNotStartError(AssertionError):
    """The server ended or took too long before it was ready; the message has its log.

    Attributes:
        code: the exit code of the process; None if it took too long.
    """

    def __init__(self, reason: str, log: str, code: int | None) -> None:
        super().__init__(f"tritonserver {reason}. Its log:\n{log}")
        self.code = code


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        http, grpc, metrics: addresses, as 127.0.0.1:PORT.
        process: leads a process group of its own, in which the Python backend's processes are as well.
        log_file: what the server and its models have printed, standard output and error together.
    """

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> str:
        """What the server has printed until now."""
        return self.log_file.read_text("utf-8", errors="replace")

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def answers(self, path: str) -> bool:
        """Whether a GET request for a path of the HTTP service, such as v2/health/ready, has the status 200."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/{path}", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:  # also urllib's errors, of a status above 399 or of a refused connection
            return False


@contextlib.contextmanager
def running(
    repository: Path, *arguments: str, until: Literal["ready", "live"] = "ready", timeout: float = 60
) -> Iterator[Server]:
    """A server of a model repository, which is stopped at the end with every process that it started.

    Args:
        arguments: more of tritonserver's.
        until: `ready` waits for all models, `live` for the server alone, some of whose models may have failed.
        timeout: seconds until then.

    Raises:
        DidNotStartError: the server ended before, or took longer.
    """
    if not TRITONSERVER.is_file():
        pytest.fail(_MISSING)
    http, grpc, metrics = _free_ports(3)
    command = [str(TRITONSERVER), f"--model-repository={repository}", f"--http-port={http}", f"--grpc-port={grpc}"]
    command += [f"--metrics-port={metrics}", *(f"--{each}-address=127.0.0.1" for each in ("http", "grpc", "metrics"))]
    command += ["--exit-timeout-secs=5", "--allow-gpu-metrics=false", *arguments]
    with tempfile.NamedTemporaryFile(prefix="tritonserver-", suffix=".log") as log:
        regions = Path(log.name).stem
        command.append(f"--backend-config=python,shm-region-prefix-name={regions}")
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        addresses = (f"127.0.0.1:{port}" for port in (http, grpc, metrics))
        server = Server(*addresses, process=process, log_file=Path(log.name))
        try:
            _wait(server, f"v2/health/{until}", timeout)
            yield server
        finally:
            _stop(process)
            for region in Path("/dev/shm").glob(f"{regions}*"):
                region.unlink()  # left by a server that was killed, as large as its largest requests


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _wait(server: Server, path: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not server.answers(path):
        if not server.alive():
            code = server.process.returncode
            raise DidNotStartError(f"ended with code {code}", server.log(), code)
        if time.monotonic() > deadline:
            raise DidNotStartError(f"did not answer {path} within {timeout:g} s", server.log(), None)
        time.sleep(_POLL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    # Processes of the Python backend outlive a server that was killed.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

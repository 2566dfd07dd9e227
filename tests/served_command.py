# SPDX-License-Identifier: Apache-2.0
"""metaformer-export serve in a process of its own, for the time of a test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from install_tritonserver import TRITONSERVER

PATIENCE_S = 30


@dataclass(frozen=True)
class Serving:
    """metaformer-export serve in a process of its own.

    Attributes:
        lines: what it has printed on standard output, until it listened or ended.
        errors: file with what it prints on standard error.
    """

    process: subprocess.Popen[str]
    ports: tuple[int, int, int]
    lines: list[str]
    errors: Path

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    def end(self, number: signal.Signals) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def serving(
    repository: Path, errors: Path, *arguments: str, until: Callable[[list[str]], bool] | None = None
) -> Iterator[Serving]:
    """The command on free ports, once it listens or has ended; nothing of it is left afterwards."""
    ports = free_ports()
    options = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    command = [sys.executable, "-m", "metaformer_export", "serve", str(repository), "--server", str(TRITONSERVER)]
    with errors.open("w") as told:
        process = subprocess.Popen(
            [*command, *options, *arguments], stdout=subprocess.PIPE, stderr=told, text=True, start_new_session=True
        )
        children: set[int] = set()
        try:
            lines: list[str] = []
            if until is None:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line.rstrip("\n"))
                    if lines[-1].startswith(("listening", "}")):  # the last line, of JSON too
                        break
            else:
                wait_for(lambda: until(errors.read_text().splitlines()))
            children = descendants(process.pid)
            yield Serving(process, ports, lines, errors)
            process.wait(PATIENCE_S)
        finally:
            for child in {process.pid, *children, *descendants(process.pid)} if process.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.wait()
    wait_for(lambda: not any(runs(child) for child in children))


def descendants(pid: int) -> set[int]:
    """Processes that a process started, and those started."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or ends while it is read
        return set()
    found = {int(each) for each in listed.split()}
    return found.union(*(descendants(each) for each in found))


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its exit code for a parent that does not ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or ends while it is read
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once it holds; fail if that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_ports() -> tuple[int, int, int]:
    """Ports that nothing listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        http, grpc, metrics = (int(each.getsockname()[1]) for each in sockets)
        return http, grpc, metrics

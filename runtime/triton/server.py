# SPDX-License-Identifier: Apache-2.0
"""A tritonserver of this machine, from its start to its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException

from ...errors import ServerError
from .answers import ModelState, first_line, models_of_index

_POLL_S = 0.1
_ANSWER_S = 5.0
_GRACE_S = 40.0
"""tritonserver gives 30 seconds to requests under way."""
_GRACE_LOADING_S = 5.0
"""While it loads models there are none, and it does not look up."""
_LAST_LINES = 2000
_ERROR = re.compile(r'E\d{4} \S+ \d+ (?P<source>[\w.]+):\d+\] "?(?P<text>.*?)"?\s*')
_FAILED = (
    re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)"),
    re.compile(r"failed to load model '(?P<model>[^']+)': (?P<reason>.*)"),
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)"),
    re.compile(r"(?P<reason>.*?\bensemble '?(?P<model>[^' ]+)'? (?:depends on|contains models) .*)"),
)
_REPEATED = re.compile(r"\.? Model '[^']+' loading failed with error: .*", re.DOTALL)
"""What an ensemble's reason says of the model that it needs, which has a reason of its own."""


class Server:
    """A process, and what it printed.

    Args:
        process: leads a process group of its own.
        http: HOST:PORT of its HTTP service.
        told: called with every line that it prints, and whether that is an error.

    Attributes:
        grace: seconds that it gets to end by itself.
    """

    def __init__(self, process: subprocess.Popen[str], http: str, told: Callable[[str, bool], object]) -> None:
        self.process = process
        self._base = f"http://{http}/"
        # Not through a proxy: the server is on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._told = told
        self.grace = _GRACE_LOADING_S
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self, timeout: float, stopped: Callable[[], bool]) -> dict[str, str]:
        """Wait until all models are loaded, or have failed.

        Args:
            timeout: seconds to wait.
            stopped: asked again and again; True ends the wait.

        Returns:
            Why models failed, by name.

        Raises:
            ServerError: the server ended, or takes longer.
        """
        deadline = time.monotonic() + timeout
        while not stopped():
            if self.process.poll() is not None:
                self._reader.join(_ANSWER_S)
                if failed := failures_of_log(tuple(self._lines)):
                    return failed
                raise ServerError(self.ended())
            if self._answers("v2/health/live"):  # only when every model was tried
                if failed := self._failures():
                    return failed
                if self._answers("v2/health/ready"):
                    self.grace = _GRACE_S
                    self._lines.clear()  # a CPU alone is an error of CUDA's, and no reason for what happens later
                    return {}
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server was not ready within {timeout:g} s; --timeout gives it longer, --verbose shows what "
                    "it does."
                )
            time.sleep(_POLL_S)
        return {}

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Return when it is stopped; ServerError if the server ends by itself."""
        while not stopped():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_POLL_S)
                self._reader.join(_ANSWER_S)
                raise ServerError(self.ended())

    def models(self) -> tuple[ModelState, ...]:
        """Every version of every model of the repository; OSError or ValueError if the server does not answer so."""
        return models_of_index(json.loads(self._request("v2/repository/index", b"{}")))

    def stop(self, hurried: Callable[[], bool]) -> None:
        """End it with every process of its own; kill it where that takes too long, or `hurried` says so."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        while self.process.poll() is None and time.monotonic() < deadline and not hurried():
            time.sleep(_POLL_S)
        if self.process.poll() is None:
            self._told("the server did not end by itself and was killed", True)
        # Also when it ended by itself: the Python backend's processes outlive a server that was killed.
        self._signal(signal.SIGKILL)
        self.process.wait()

    def ended(self) -> str:
        """How the process ended, and the last thing that it complained of."""
        code = self.process.returncode
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        lines = tuple(self._lines)
        errors = [found["text"] for line in lines if (found := _ERROR.fullmatch(line))]
        errors += [line for line in lines if line.startswith(("error:", "Error:", "tritonserver:"))]
        return f"the server ended {how}: {_reason(errors[-1]) if errors else 'it says nothing; see --verbose'}."

    def _failures(self) -> dict[str, str]:
        """Models that are not ready and why; the index has no reason for one whose configuration cannot be read."""
        logged = failures_of_log(tuple(self._lines))
        try:
            models = self.models()
        except (OSError, ValueError):
            return logged
        ready = {each.name for each in models if each.ready}
        given = {each.name: _reason(each.reason) for each in models if each.state == "UNAVAILABLE" and each.reason}
        # A model without either was never to be loaded, as with --model-control-mode=explicit.
        return {name: reason for name, reason in {**logged, **given}.items() if name not in ready}

    def _answers(self, path: str) -> bool:
        try:
            self._request(path)
        except (OSError, HTTPException):  # also urllib's, of any status but success
            return False
        return True

    def _request(self, path: str, data: bytes | None = None) -> bytes:
        with self._opener.open(self._base + path, data, timeout=_ANSWER_S) as response:
            return bytes(response.read())

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.rstrip("\n"))
            self._told(self._lines[-1], _ERROR.fullmatch(self._lines[-1]) is not None)


@contextlib.contextmanager
def started(
    command: Sequence[str], http: str, told: Callable[[str, bool], object], hurried: Callable[[], bool]
) -> Iterator[Server]:
    """A server that runs while the block does, and has ended with every process of its own when the block is left.

    Args:
        hurried: asked while the server ends what is under way; True kills it.

    Raises:
        ServerError: the program cannot be started.
    """
    try:
        # A process group of its own: Ctrl-C at a terminal is ours to hand on, and the Python backend's processes are
        # in the group.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
    except OSError as error:
        raise ServerError(f"{command[0]} cannot be started: {error.strerror}.") from error
    server = Server(process, http, told)
    try:
        yield server
    finally:
        server.stop(hurried)


def failures_of_log(lines: Sequence[str]) -> dict[str, str]:
    """Models that a log says were not loaded, and its reason in one line; the first one that it gives."""
    failed: dict[str, str] = {}
    for line in lines:
        error = _ERROR.fullmatch(line)
        for pattern in _FAILED if error else ():
            if error and (found := pattern.fullmatch(error["text"])):
                failed.setdefault(found["model"], _reason(found["reason"]))
                break
    return failed


def _reason(text: str) -> str:
    """The first line of a reason, which a log has with the line breaks of a traceback written out."""
    return first_line(_REPEATED.sub("", text.replace("\\n", "\n")))

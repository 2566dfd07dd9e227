# SPDX-License-Identifier: Apache-2.0
"""What TensorRT says while it works: its log, its errors and its progress, collected instead of printed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt

_LOG = logging.getLogger(__name__)
_KEPT = 200
"""Messages; a builder that repeats itself must not fill the memory."""


@dataclass
class Messages:
    """What was said, each text once, in order. Safe to be told from several threads, as the builder does.

    Attributes:
        errors, warnings: TensorRT's.
        notes: ours, about the build.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def error(self, text: str) -> None:
        self._add(self.errors, text)

    def warning(self, text: str) -> None:
        self._add(self.warnings, text)

    def _add(self, texts: list[str], text: str) -> None:
        line = " ".join(text.split())
        with self._lock:
            if line and line not in texts and len(texts) < _KEPT:
                texts.append(line)


def logger_to(messages: Messages) -> trt.ILogger:
    """A logger of TensorRT's that keeps warnings and errors; the rest goes to Python's logging."""
    return _logger(lambda: messages)


def load_plugins(messages: Messages) -> None:
    """Register TensorRT's own plugins; what their library says goes to these messages, until the next call.

    The library keeps a bare pointer to the logger that it was given last (gLogger in plugin/api/inferPlugin.cpp of
    TensorRT's sources), so that it gets one that lives as long as the process.
    """
    import tensorrt as trt

    told = _told_by_plugins()
    told.messages = messages
    trt.init_libnvinfer_plugins(told.logger, "")


@dataclass
class _Listener:
    """Whom a logger tells, which may change."""

    messages: Messages
    logger: trt.ILogger | None = None


@cache
def _told_by_plugins() -> _Listener:
    told = _Listener(Messages())
    told.logger = _logger(lambda: told.messages)
    return told


def _logger(target: Callable[[], Messages]) -> trt.ILogger:
    import tensorrt as trt

    severities = trt.ILogger.Severity

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                target().error(msg)
            elif severity == severities.WARNING:
                target().warning(msg)
            _LOG.debug("TensorRT: %s", msg)

    return Logger()


def recorder_to(messages: Messages) -> trt.IErrorRecorder:
    """An error recorder of TensorRT's that keeps every error with its code."""
    import tensorrt as trt

    recorded: list[tuple[trt.ErrorCodeTRT, str]] = []

    class Recorder(trt.IErrorRecorder):
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)

        def num_errors(self) -> int:
            return len(recorded)

        def get_error_code(self, arg0: int) -> trt.ErrorCodeTRT:
            return recorded[arg0][0]

        def get_error_desc(self, arg0: int) -> str:
            return recorded[arg0][1]

        def has_overflowed(self) -> bool:
            return len(recorded) >= _KEPT

        def clear(self) -> None:
            recorded.clear()

        def report_error(self, arg0: trt.ErrorCodeTRT, arg1: str) -> bool:
            if len(recorded) < _KEPT:
                recorded.append((arg0, arg1))
            messages.error(arg1)
            return True

    return Recorder()


@dataclass
class Phases:
    """Progress of a build: the steps of its outermost phase. `cancel` asks it to stop at the next step.

    Attributes:
        told: called with the phase's name, its steps so far and all of them.
    """

    told: Callable[[str, int, int], None]
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _outermost: str = ""
    _steps: int = 0

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def started(self, name: str, parent: str | None, steps: int) -> None:
        if not parent:
            self._outermost, self._steps = name, steps
            self.told(name, 0, steps)

    def stepped(self, name: str, step: int) -> bool:
        """Whether to go on."""
        if name == self._outermost:
            self.told(name, step + 1, self._steps)
        return not self.cancelled

    def finished(self, name: str) -> None:
        if name == self._outermost:
            self.told(name, self._steps, self._steps)


def monitor_of(phases: Phases) -> trt.IProgressMonitor:
    """A progress monitor of TensorRT's; the builder calls it from threads of its own."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.stepped(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finished(phase_name)

    return Monitor()

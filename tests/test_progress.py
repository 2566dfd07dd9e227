# SPDX-License-Identifier: Apache-2.0
"""What a long stage says while it goes on."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from metaformer_export import console as shown
from metaformer_export.console import ConsoleProgress
from metaformer_export.progress import Silent


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setattr(shown, "_LONG_STEP_S", 0.05)
    return Console(file=io.StringIO(), width=200)


def test_only_long_steps_have_lines_before_that_of_their_stage(console: Console) -> None:
    progress = ConsoleProgress(console)
    with progress.stage("parity") as done:
        with progress.step("eager"):
            time.sleep(0.1)
        with progress.step("model.onnx"):
            pass
        done("holds")
    assert isinstance(console.file, io.StringIO)
    step, stage = console.file.getvalue().splitlines()
    assert step.startswith("        ")
    assert step.endswith(" s    eager")
    assert stage.startswith("parity ")
    assert stage.endswith(" s  holds")
    assert step.index(" s  ") == stage.index(" s  ")


def test_a_step_that_fails_says_nothing_and_hides_nothing(console: Console) -> None:
    for progress in (ConsoleProgress(console), Silent()):
        with pytest.raises(ValueError, match="why"), progress.step("eager"):
            raise ValueError("why")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""

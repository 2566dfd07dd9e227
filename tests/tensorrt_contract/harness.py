# SPDX-License-Identifier: Apache-2.0
"""Python with one version of TensorRT's real bindings, for tests on machines that have neither TensorRT nor a GPU.

A version is loaded once in a process and stays, so that everything runs in a child process. What
install_tensorrt_bindings.py has not installed is skipped, and fails where CI is set: there it would be forgotten.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest
from install_tensorrt_bindings import FOLDER, WHEELS

from .api import Api

VERSIONS = tuple(wheel.version for wheel in WHEELS)
"""In ascending order."""
_DESCRIBE = Path(__file__).with_name("describe.py")


def run_in_bindings(version: str, code: str, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A program with `tensorrt`, `tensorrt.plugin`, Polygraphy and this package, run to its end.

    Objects are real but empty: `trt.Builder(trt.Logger())`, its configuration, profiles, networks, engines and contexts
    can be made, set and called, and refuse what they have not and arguments of a wrong type. What they return means
    nothing: objects are of the right class, booleans are true, and numbers, texts and shapes must not be looked at. No
    builder, runtime or engine is started, and a plugin can be registered with lazy_register=True only.

    Args:
        version: one of VERSIONS.
        timeout: seconds.

    Returns:
        the process with its text; `returncode` is not judged.
    """
    return _run(version, ["-c", code], timeout)


def printed(version: str, code: str) -> list[str]:
    """Lines that a program printed, without those of TensorRT's logger; fails where the program does.

    Args:
        code: may be indented.
    """
    done = run_in_bindings(version, dedent(code))
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "[TRT]" not in line]


@cache
def bindings(version: str) -> Api:
    """Everything that can be named in a version of TensorRT, read from its bindings."""
    done = _run(version, [str(_DESCRIBE)], timeout=60)
    assert done.returncode == 0, done.stderr
    return Api.of(json.loads(done.stdout.splitlines()[-1]))  # a logger of TensorRT speaks before


def _run(version: str, arguments: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    _require(version)
    folder = FOLDER / version
    # Libraries of an installed TensorRT must not get in front of ours.
    libraries = [str(folder / "tensorrt_bindings"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    # -P: a file of the working directory must not stand for a package.
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def _require(version: str) -> None:
    if (FOLDER / version).is_dir():
        return
    if any(wheel.version == version and not wheel.exists for wheel in WHEELS):
        pytest.skip(f"there are no bindings of TensorRT {version} for this Python.")
    reason = f"no bindings of TensorRT {version}; python tests/install_tensorrt_bindings.py installs them."
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(reason)
    pytest.fail(reason)

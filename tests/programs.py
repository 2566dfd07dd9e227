# SPDX-License-Identifier: Apache-2.0
"""Programs of the development environment that tests run."""

from __future__ import annotations

import os
import shutil
import sysconfig

import pytest

SEARCHED = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
"""This environment's programs before others."""


def program(name: str) -> str:
    """A program's path; without it the test is skipped, unless this is CI."""
    found = shutil.which(name, path=SEARCHED)
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed")
    assert found is not None, f"{name} is not installed, which CI must have"
    return found

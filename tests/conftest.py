# SPDX-License-Identifier: Apache-2.0
"""Models that many tests look at are built and traced once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import support
import torch
from hypothesis import settings
from small_models import small
from torch import nn

from metaformer_export import timing
from metaformer_export.artifacts import Traced
from metaformer_export.export.trace import trace
from metaformer_export.models import hornet, registry
from metaformer_export.models.family import BuildOptions

settings.register_profile("default", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("default")

# A shell's background job is started with Ctrl-C ignored, and so would be all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Each process on a core of its own: threads that wait in a loop would take the other's.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))


@pytest.fixture(scope="session", autouse=True)
def _timed_briefly() -> Iterator[None]:
    """What is exported is timed as ever, only not for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for seconds in ("_TOGETHER_SECONDS", "_ALONE_SECONDS"):
            patch.setattr(timing, seconds, 0.3)
        yield


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """hornet_test and hornet_test_gf exist in this test."""
    monkeypatch.setattr(registry, "FAMILIES", (support.small_family(),))


@pytest.fixture(scope="session")
def small_gf() -> nn.Module:
    return support.fill_golden(hornet.HorNet(support.SMALL_GF, BuildOptions()))


@pytest.fixture(scope="session")
def traced_small_gf(small_gf: nn.Module) -> Traced:
    return trace(small_gf, support.spec_for("hornet_test_gf"))


@pytest.fixture(scope="session")
def small_boat() -> nn.Module:
    """BOAT-Swin with one clustering in each of three stages."""
    return small("boat_swin").module


@pytest.fixture(scope="session")
def traced_small_boat() -> Traced:
    return small("boat_swin").traced


@pytest.fixture(scope="session")
def small_7x7() -> nn.Module:
    return support.fill_golden(hornet.HorNet(support.SMALL, BuildOptions()))


@pytest.fixture(scope="session")
def traced_small_7x7(small_7x7: nn.Module) -> Traced:
    return trace(small_7x7, support.spec_for("hornet_test"))

# SPDX-License-Identifier: Apache-2.0
"""What kernels are said to need of a GPU: of GlobalFilter's, and of kernels that ask too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import triton
import triton.language as tl

from metaformer_export.export.ops import surveying
from metaformer_export.export.ops.catalog import OPS
from metaformer_export.export.ops.compiling import ARCHITECTURES
from metaformer_export.export.ops.global_filter import OP
from metaformer_export.export.ops.kernel import FLOATS, Kernel, Launch
from metaformer_export.export.ops.mixer_op import MixerOp
from metaformer_export.export.ops.sizes import all_uses
from metaformer_export.export.ops.surveying import SHARED_MEMORY, Job, compile_all, compile_one, survey
from metaformer_export.export.ops.use import Use

FILTER = Use("GlobalFilter", {"x": (-1, 8, 7, 7), "weight": (8, 7, 4, 2)}, {"height": 7, "width": 7})
LARGE = Use("GlobalFilter", {"x": (-1, 8, 56, 56), "weight": (8, 56, 29, 2)}, {"height": 56, "width": 56})


@triton.jit
def products_of(x_ptr, batch, y_ptr, terms: tl.constexpr):  # type: ignore[no-untyped-def]
    """(16, terms) times (terms, 16), both in shared memory: 64 bytes a term in float16."""
    row = tl.arange(0, 16)[:, None]
    column = tl.arange(0, 16)[None, :]
    term = tl.arange(0, terms)
    one = tl.load(x_ptr + row * terms + term[None, :])
    other = tl.load(x_ptr + term[:, None] * 16 + column)
    tl.store(y_ptr + row * 16 + column, tl.dot(one, other))


@triton.jit
def sum_of_unequal(x_ptr, batch, y_ptr, terms: tl.constexpr):  # type: ignore[no-untyped-def]
    """What no compiler takes."""
    tl.store(y_ptr, tl.sum(tl.arange(0, terms) + tl.arange(0, 2 * terms)))


def use_kernel(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    """Let every mixer op have that kernel."""
    kernel = Kernel(
        load=lambda: function,
        inputs={"x": "float"},
        attributes={},
        output="float",
        output_shape=lambda shapes, attributes: shapes["x"],
        launch=lambda shapes, attributes: Launch({"terms": shapes["x"][1]}),
    )
    op = MixerOp("Test", (), OP.function, kernel=kernel)
    monkeypatch.setattr(surveying, "find", lambda name: op)


def job(terms: int, architecture: int) -> Job:
    return Job(Use("Test", {"x": (-1, terms)}, {}), "fp16", architecture)


def test_every_architecture_has_its_limit() -> None:
    assert {each: limit // 1024 for each, limit in SHARED_MEMORY.items()} == {
        80: 163,
        86: 99,
        89: 99,
        90: 227,
        100: 227,
    }
    assert set(SHARED_MEMORY) == set(ARCHITECTURES)


def test_a_survey_has_every_size_type_and_architecture() -> None:
    found = survey([FILTER, LARGE], ["GlobalFilter"], (80, 90))
    assert [(each.dtype, each.architecture) for each in found.jobs] == [(d, a) for d in FLOATS for a in (80, 90)]
    assert {each.use.size for each in found.jobs} == {"8x7x7"}
    assert [(use.size, reason[-30:]) for use, reason in found.refused] == [
        ("8x56x56", "maps of at most 32x32, got 56x56"[-30:])
    ]


def test_an_op_that_stays_in_float32_is_compiled_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "OPS", (replace(OP, float32_inside=False),))
    assert [each.dtype for each in survey([FILTER], ["GlobalFilter"], (80,)).jobs] == ["fp32"]


def test_a_survey_of_all_families_has_every_op_with_a_kernel() -> None:
    able = [op.op_type for op in OPS if op.kernel is not None]
    found = survey(all_uses(), able, (80,))
    assert list(dict.fromkeys(each.use.op_type for each in found.jobs)) == able
    filters = [use for use in all_uses() if use.op_type == "GlobalFilter"]
    small = [use for use in filters if max(use.shapes["x"][2:]) <= 32]
    assert {(each.use.size, each.dtype) for each in found.jobs if each.use in filters} == {
        (use.size, dtype) for use in small for dtype in FLOATS
    }
    refused = [use.size for use, _ in found.refused if use in filters]
    assert refused == [use.size for use in filters if use not in small]
    assert {"192x56x56", "192x96x96"} <= set(refused)


def test_kernels_are_compiled_in_processes_and_told_of() -> None:
    jobs = survey([FILTER], ["GlobalFilter"], (80,)).jobs
    told: list[int] = []
    outcomes = compile_all(jobs, 2, told.append)
    assert [outcome.job for outcome in outcomes] == list(jobs)
    assert told == [1, 1, 1]
    for outcome in outcomes:
        assert outcome.failure == ""
        assert outcome.needs is not None
        assert outcome.needs.parameters == ("u64", "u64", "u32", "u64")
        assert outcome.needs.threads == 128
        assert 32 <= outcome.needs.registers <= 255
        assert 4096 <= outcome.needs.shared_memory <= 48 * 1024
        assert outcome.needs.spills == 0
        assert outcome.needs.ptx > 10_000


@pytest.mark.parametrize(
    ("architecture", "failure"), [(80, ""), (86, "128 KiB of shared memory, and the GPU has 99 KiB")]
)
def test_more_shared_memory_than_there_is_is_a_failure(
    architecture: int, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_kernel(monkeypatch, products_of)
    outcome = compile_one(job(2048, architecture))
    assert outcome.needs is not None
    assert outcome.needs.shared_memory == 128 * 1024
    assert outcome.failure.removeprefix("it needs ") == failure


def test_what_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernel(monkeypatch, sum_of_unequal)
    outcome = compile_one(job(16, 80))
    assert outcome.needs is None
    assert outcome.failure.startswith("CompilationError: ")
    assert "incompatible dimensions at index 0: 16 and 32" in outcome.failure
    assert "\n" not in outcome.failure

# SPDX-License-Identifier: Apache-2.0
"""Work in processes: results by place, and what happens when a process dies."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from metaformer_export.export.ops.processes import each_in_a_process


def test_every_result_comes_once_with_its_place() -> None:
    numbers = [9.0, 4.0, 1.0, 0.0]
    assert sorted(each_in_a_process(math.sqrt, numbers, 2)) == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)]


def test_no_jobs_need_no_process() -> None:
    assert list(each_in_a_process(math.sqrt, [], 2)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_only_the_jobs_that_kill_their_process_are_lost(workers: int) -> None:
    jobs = ["1 + 1", "__import__('os')._exit(0)", "2 + 2", "__import__('os').abort()", "3 + 3"]
    assert dict(each_in_a_process(eval, jobs, workers)) == {0: 2, 1: None, 2: 4, 3: None, 4: 6}


def test_an_exception_of_the_function_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError, match="by zero"):
        list(each_in_a_process(eval, ["1 + 1", "1 // 0"], 2))


def test_no_process_outlives_the_one_that_started_it() -> None:
    """All of them hold the pipe, which ends when the last of them does."""
    jobs = ["print('begun', flush=True) or __import__('time').sleep(60)"] * 2
    program = (
        "from metaformer_export.export.ops.processes import each_in_a_process\n"
        f"list(each_in_a_process(eval, {jobs!r}, 2))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in jobs] == ["begun\n", "begun\n"]
        process.kill()
        assert process.communicate(timeout=20)[0] == ""

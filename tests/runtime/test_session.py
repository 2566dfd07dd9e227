# SPDX-License-Identifier: Apache-2.0
"""Several batches at once give what one after the other gives."""

from __future__ import annotations

import threading

import numpy as np
import support

from metaformer_export.artifacts import Traced
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import serialize
from metaformer_export.runtime.onnxruntime import open_session
from metaformer_export.runtime.session import run_each


def test_two_batches_at_once_are_those_of_one_after_the_other(traced_small_gf: Traced) -> None:
    file = serialize(lower(traced_small_gf, "portable").model)
    images = np.random.RandomState(0).standard_normal((7, 3, *traced_small_gf.spec.image_size)).astype(np.float32)
    calls = [(images[i : i + 1],) for i in range(7)]
    together, alone = open_session(file, threads=2, at_once=2), open_session(file, threads=1)
    assert (together.at_once, alone.at_once) == (2, 1)
    for got, want in zip(run_each(together, calls), run_each(alone, calls), strict=True):
        assert support.relative_error(got[0], want[0]) < 1e-6


def test_as_many_calls_run_at_once_as_a_session_takes() -> None:
    class Meeting:
        """Each call waits for another."""

        at_once = 2
        barrier = threading.Barrier(2, timeout=20)

        def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
            self.barrier.wait()
            return [2 * batch]

    results = run_each(Meeting(), [(np.full(1, i, np.float32),) for i in range(4)])
    assert [float(result[0][0]) for result in results] == [0, 2, 4, 6]


def test_a_function_is_called_for_one_batch_after_the_other() -> None:
    threads = set()

    def run(batch: np.ndarray) -> list[np.ndarray]:
        threads.add(threading.get_ident())
        return [batch]

    assert len(run_each(run, [(np.zeros(1),)] * 3)) == 3
    assert threads == {threading.get_ident()}

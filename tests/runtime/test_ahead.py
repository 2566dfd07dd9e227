# SPDX-License-Identifier: Apache-2.0
"""Sessions that are opened on other threads before they are asked for."""

from __future__ import annotations

import threading

import pytest

from metaformer_export.errors import InputError
from metaformer_export.runtime.ahead import ahead

_PATIENCE = 20.0


def test_two_open_at_once_before_they_are_asked_for() -> None:
    both = threading.Barrier(2, timeout=_PATIENCE)

    def opener() -> int:
        return both.wait()  # raises unless another comes while it waits

    with ahead(2) as begin:
        first, second = begin(opener), begin(opener)
        assert {first(), second()} == {0, 1}


def test_with_none_at_once_each_is_opened_where_and_when_it_is_asked_for() -> None:
    seen: list[int] = []
    with ahead(0) as begin:
        opener = begin(lambda: seen.append(threading.get_ident()))
        assert seen == []
        opener()
    assert seen == [threading.get_ident()]


def test_what_stops_an_opener_is_raised_where_it_is_asked_for() -> None:
    def refuse() -> int:
        raise InputError("no")

    with ahead(1) as begin:
        bad, good = begin(refuse), begin(lambda: 7)
        with pytest.raises(InputError, match="no"):
            bad()
        assert good() == 7


@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_runs_any_more_after_the_block(stopped: bool) -> None:
    finished: list[int] = []
    begun = threading.Event()

    def slowly() -> None:
        begun.set()
        threading.Event().wait(0.2)
        finished.append(1)

    try:
        with ahead(1) as begin:
            begin(slowly)
            begin(slowly)
            assert begun.wait(_PATIENCE)
            if stopped:
                raise InputError("stop")
    except InputError:
        pass
    after = len(finished)
    threading.Event().wait(0.5)
    # The second was not begun yet when the block was left by an error.
    assert after == len(finished) == (1 if stopped else 2)

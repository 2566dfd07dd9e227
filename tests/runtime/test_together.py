# SPDX-License-Identifier: Apache-2.0
"""Sessions that are opened at once, on threads of their own."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from metaformer_export.errors import InputError
from metaformer_export.runtime.together import together

_PATIENCE = 20.0


def test_two_open_at_once() -> None:
    both = threading.Barrier(2, timeout=_PATIENCE)

    def opener() -> int:
        return both.wait()  # raises unless another comes while it waits

    with together(2) as begin:
        first, second = begin(opener), begin(opener)
        assert {first(), second()} == {0, 1}


def test_with_none_at_once_each_is_opened_where_and_when_it_is_asked_for() -> None:
    seen: list[int] = []
    with together(0) as begin:
        opener = begin(lambda: seen.append(threading.get_ident()))
        assert seen == []
        opener()
    assert seen == [threading.get_ident()]


def test_what_stops_an_opener_is_raised_where_it_is_asked_for() -> None:
    def refuse() -> int:
        raise InputError("no")

    with together(1) as begin:
        bad, good = begin(refuse), begin(lambda: 7)
        with pytest.raises(InputError, match="no"):
            bad()
        assert good() == 7


def test_who_asks_for_one_has_all_opened_and_the_same_each_time() -> None:
    opened: list[int] = []

    def opener() -> int:
        opened.append(len(opened))
        return opened[-1]

    with together(1) as begin:
        first, second = begin(opener), begin(opener)
        assert opened == [], "not before anybody asks"
        assert first() == 0
        assert opened == [0, 1]
        third = begin(opener)
        assert (second(), third(), first()) == (1, 2, 0)
    assert (opened, third()) == ([0, 1, 2], 2)


def test_nothing_that_nobody_asked_for_is_opened_after_the_block() -> None:
    opened: list[int] = []
    with together(1) as begin:
        begin(lambda: opened.append(1))
    with suppress(InputError), together(1) as begin:
        begin(lambda: opened.append(1))
        raise InputError("stop")
    threading.Event().wait(0.2)
    assert opened == []

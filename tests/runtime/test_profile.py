# SPDX-License-Identifier: Apache-2.0
"""Time by module, and where more of it goes than before."""

from __future__ import annotations

import pytest
import support

from metaformer_export.artifacts import Traced
from metaformer_export.export.graph import module_of
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import serialize
from metaformer_export.runtime.profile import by_module, lost


def test_every_millisecond_belongs_to_a_module(traced_small_7x7: Traced) -> None:
    model = lower(traced_small_7x7, "portable").model
    found = by_module(serialize(model).graph, support.image(1, 3, 224, 224), 2)
    modules = {module_of(node) or "model" for node in model.graph}
    assert set(found) - modules <= {"changes of layout"}
    assert len(set(found) & modules) > 10
    assert all(ms >= 0 for ms in found.values())
    of_blocks = sum(ms for module, ms in found.items() if module.startswith("stages."))
    assert of_blocks > 0.3 * sum(found.values()) > 0


def test_the_worst_comes_first_and_what_is_faster_is_left_out() -> None:
    found = lost({"a": 2.0, "b": 5.0, "c": 1.0, "d": 0.5}, {"a": 1.5, "b": 1.0, "c": 3.0}, count=3)
    assert [module for module, _ in found] == ["b", "a", "d"]
    assert [ms for _, ms in found] == pytest.approx([4.0, 0.5, 0.5])
    assert lost({"a": 1.0}, {"a": 2.0}) == ()

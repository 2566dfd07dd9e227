# SPDX-License-Identifier: Apache-2.0
"""Which form of a mixer op may be asked for."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from metaformer_export.errors import InputError
from metaformer_export.export.ops.choosing import choose


def graph_of(*sides: int) -> ir.Graph:
    """A GlobalFilter for every side of a map."""
    nodes = []
    for side in sides:
        x = ir.Value(name=f"x{side}", shape=ir.Shape(("batch", 8, side, side)), type=ir.TensorType(ir.DataType.FLOAT))
        weight = ir.Value(name=f"w{side}", shape=ir.Shape((8, side, side // 2 + 1, 2)))
        attributes = {"height": side, "width": side}
        nodes.append(ir.node("GlobalFilter", [x, weight], attributes, domain="metaformer"))
    return ir.Graph([], [], nodes=nodes, opset_imports={"": 20, "metaformer": 1})


def test_an_op_that_the_model_has_may_be_asked_for() -> None:
    assert choose(graph_of(7, 14), {"GlobalFilter": "native"}) == ({"GlobalFilter": "native"}, [])
    assert choose(graph_of(), {}) == ({}, [])


@pytest.mark.parametrize(
    ("sides", "rest"),
    [
        ((7,), "the model has no LocalAttention, only GlobalFilter; leave it out."),
        ((), "the model has no LocalAttention, nor any other; leave it out."),
    ],
)
def test_an_op_that_the_model_does_not_have_is_refused(sides: tuple[int, ...], rest: str) -> None:
    with pytest.raises(InputError) as caught:
        choose(graph_of(*sides), {"LocalAttention": "plugin"})
    assert str(caught.value) == f"--lowering LocalAttention=plugin: {rest}"

# SPDX-License-Identifier: Apache-2.0
"""A number in place of the batch gives the graph that a symbolic batch gives, and is noticed where it would stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import support
import torch
from small_models import MOST_QUICKLY, small
from torch import Tensor, nn

from metaformer_export.export import trace as tracing
from metaformer_export.export.stand_in import STAND_IN, is_computed_with, replace_by_batch
from metaformer_export.export.trace import trace
from metaformer_export.runtime import eager


@pytest.mark.parametrize("kind", MOST_QUICKLY)
def test_the_graph_is_that_of_a_symbolic_batch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_number = small(kind)
    assert by_number.computed_with == (False,)
    monkeypatch.setattr(tracing, "is_computed_with", lambda graph: True)
    symbolic = trace(by_number.module, by_number.traced.spec)
    assert support.canonical(by_number.traced.model.graph) == support.canonical(symbolic.model.graph)


class _Batched(nn.Module):
    """(B, C, H, W) -> (B, C * H * W): a model that computes with the size of its batch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self.how == "shape":
            return (2 * x).reshape(x.shape[0], flat.shape[1])
        if self.how == "range":
            return flat + torch.arange(x.shape[0], dtype=x.dtype)[:, None]
        if self.how == "divisor":
            return flat / x.shape[0]
        return flat * torch.ones(1, flat.shape[1]).expand(x.shape[0], -1)


@pytest.mark.parametrize("how", ["shape", "range", "divisor", "expand"])
def test_a_model_that_computes_with_its_batch_is_right_for_any(how: str) -> None:
    module = _Batched(how).eval()
    traced = trace(module, support.spec_for(how, (4, 4)))
    for batch in (1, 3):
        x = support.image(batch, 3, 4, 4)
        (got,) = support.run_model(traced.model, x)
        (want,) = eager.run(module, x)
        assert got.shape == want.shape == (batch, 48)
        assert support.relative_error(got, want) <= 1e-6


@pytest.mark.parametrize(
    ("constant", "noticed"),
    [
        (ir.tensor([2, 3 * STAND_IN]), True),
        (ir.tensor([0, STAND_IN + 1]), False),
        (ir.tensor([2.0 * STAND_IN]), True),
        (ir.tensor([1.5, float(STAND_IN)]), False),
    ],
)
def test_multiples_among_constants_are_noticed(constant: ir.TensorProtocol, noticed: bool) -> None:
    weight = ir.val("constant", const_value=constant)
    assert is_computed_with(ir.Graph([], [], nodes=[], initializers=[weight])) == noticed
    made = ir.node("Constant", [], {"value": constant})
    assert is_computed_with(ir.Graph([], [], nodes=[made])) == noticed
    listed = ir.node("Constant", [], {"value_ints": [1, STAND_IN]})
    assert is_computed_with(ir.Graph([], [], nodes=[listed]))


def test_the_batch_and_its_multiples_get_their_names() -> None:
    x = ir.val("x", ir.DataType.FLOAT, (STAND_IN, 3, STAND_IN + 1, 0))
    node = ir.node("Reshape", [x])
    node.outputs[0].shape = ir.Shape([14 * STAND_IN, "width"])
    replace_by_batch(ir.Graph([x], node.outputs, nodes=[node]))
    assert x.shape == ("batch", 3, STAND_IN + 1, 0)
    assert node.outputs[0].shape == ("14*batch", "width")

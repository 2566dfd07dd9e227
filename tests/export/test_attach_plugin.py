# SPDX-License-Identifier: Apache-2.0
"""Nodes that TensorRT finds its plugins by, and hands their attributes to."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from metaformer_export.errors import LoweringError
from metaformer_export.export.ops.catalog import OPS
from metaformer_export.export.ops.mixer_op import MixerOp
from metaformer_export.export.passes.attach_plugin import LOOKUP, AttachPlugin
from metaformer_export.export.passes.base import run_pass

able = pytest.mark.parametrize("op", [op for op in OPS if op.kernel is not None], ids=lambda op: op.op_type)


def model_of(op: MixerOp, names: list[str]) -> ir.Model:
    """One node of that op, whose attributes are written in that order."""
    assert op.kernel is not None
    attributes = {name: op.kernel.attributes[name](1 + index) for index, name in enumerate(names)}
    inputs = [ir.Value(name=name) for name in op.kernel.inputs]
    node = ir.node(op.op_type, inputs, attributes, domain="metaformer", name="mixer")
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 20, "metaformer": 1})
    node.outputs[0].name = "y"
    return ir.Model(graph, ir_version=10)


@able
def test_a_node_declares_what_its_plugin_reads(op: MixerOp) -> None:
    assert op.kernel is not None
    assert op.attributes == tuple(op.kernel.attributes)


@able
def test_attributes_are_written_in_the_order_in_which_the_plugin_declares_them(op: MixerOp) -> None:
    """TensorRT hands their values to the plugin in the order in which its parser gives them."""
    assert op.kernel is not None
    declared = list(op.kernel.attributes)
    model = model_of(op, declared[::-1])
    run_pass(AttachPlugin(), model)
    (written,) = ir.to_proto(model).graph.node
    assert [each.name for each in written.attribute] == [*declared, *LOOKUP]
    values = [each.f if op.kernel.attributes[each.name] is float else each.i for each in written.attribute[:-2]]
    assert values == [*range(len(declared), 0, -1)]
    assert [each.s for each in written.attribute[-2:]] == [b"metaformer", b"1"]


@able
def test_a_missing_attribute_breaks_the_promise(op: MixerOp) -> None:
    assert op.kernel is not None
    with pytest.raises(LoweringError, match="mixer lacks a plugin attribute"):
        run_pass(AttachPlugin(), model_of(op, list(op.kernel.attributes)[1:]))


@able
def test_another_order_breaks_the_promise(op: MixerOp) -> None:
    assert op.kernel is not None
    model = model_of(op, list(op.kernel.attributes))
    run_pass(AttachPlugin(), model)
    assert AttachPlugin().ensures(model.graph) is None
    (node,) = model.graph
    first = next(iter(op.kernel.attributes))
    node.attributes[first] = node.attributes.pop(first)
    assert AttachPlugin().ensures(model.graph) == "mixer has its plugin's attributes in another order"

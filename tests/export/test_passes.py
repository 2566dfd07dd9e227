# SPDX-License-Identifier: Apache-2.0
"""Each pass, on the small models: the numbers before and after, and what it promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import support

from metaformer_export.artifacts import Traced
from metaformer_export.errors import LoweringError
from metaformer_export.export.graph import module_of
from metaformer_export.export.passes.attach_plugin import AttachPlugin
from metaformer_export.export.passes.base import Pass, run_pass
from metaformer_export.export.passes.catalog import PORTABLE
from metaformer_export.export.passes.clean_up import CleanUp
from metaformer_export.export.passes.distribute_splits import DistributeSplits
from metaformer_export.export.passes.fold_scales import FoldScales
from metaformer_export.export.passes.fuse_channel_layer_norm import FuseChannelLayerNorm
from metaformer_export.export.passes.linear_to_pointwise_conv import LinearToPointwiseConv
from metaformer_export.export.passes.merge_transposes import MergeTransposes
from metaformer_export.export.passes.name_after_modules import NameAfterModules

X = support.image(2, 3, 224, 224)


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def runnable(model: ir.Model) -> list[np.ndarray]:
    """Run a copy in which GlobalFilter has its function body."""
    copy = model.clone()
    AttachPlugin().rewrite(copy)
    return support.run_model(copy, X)


@pytest.fixture(params=["7x7", "gf"])
def traced(request: pytest.FixtureRequest) -> Traced:
    return request.getfixturevalue(f"traced_small_{request.param}")


def test_every_portable_pass_keeps_the_numbers(traced: Traced) -> None:
    """Held after each pass in turn: a pass that broke the graph is the one that is named."""
    model = traced.model.clone()
    (before,) = runnable(model)
    assert before.std() > 0.1
    for each in PORTABLE:
        run_pass(each, model)
        (after,) = runnable(model)
        assert support.relative_error(after, before) <= 1e-5, type(each).__name__


def test_fuse_channel_layer_norm_fuses_every_norm(traced_small_gf: Traced) -> None:
    model = traced_small_gf.model.clone()
    record = run_pass(FuseChannelLayerNorm(), model)
    # 1 stem, 3 downsample, 4 norm1, and 2 in each of the two global-local filters.
    assert record.rewrites == 12
    counts = ops(model)
    assert counts["LayerNormalization"] == 12 + 5
    assert counts["Sqrt"] == counts["Pow"] == counts["Div"] == 0
    epsilons = [node.attributes["epsilon"].value for node in model.graph if node.op_type == "LayerNormalization"]
    assert epsilons == pytest.approx([1e-6] * 17)


def test_fold_scales_leaves_no_constant_factor(traced: Traced) -> None:
    model = traced.model.clone()
    run_pass(FuseChannelLayerNorm(), model)
    assert run_pass(FoldScales(), model).rewrites == 12  # gamma1, gamma2 and s of four blocks
    factors = [n for n in model.graph if n.op_type == "Mul" and any(v.const_value is not None for v in n.inputs)]
    assert factors == []


def test_linear_layers_become_convolutions(traced_small_7x7: Traced) -> None:
    model = traced_small_7x7.model.clone()
    for each in (FuseChannelLayerNorm(), FoldScales()):
        run_pass(each, model)
    assert ops(model)["MatMul"] == 8
    run_pass(LinearToPointwiseConv(), model)
    run_pass(MergeTransposes(), model)
    assert ops(model)["MatMul"] == 0
    # Each LayerNormalization is between two transposes but the head's, and nothing else is transposed;
    # the first block's norm1 reads the stem's norm before it goes back to NCHW.
    assert ops(model)["Transpose"] == 2 * (ops(model)["LayerNormalization"] - 1) - 1


def test_splits_of_convolutions_disappear(traced_small_7x7: Traced, traced_small_gf: Traced) -> None:
    plain, filtered = traced_small_7x7.model.clone(), traced_small_gf.model.clone()
    assert ops(plain)["Split"] == 8
    run_pass(FuseChannelLayerNorm(), plain)
    run_pass(FoldScales(), plain)
    run_pass(DistributeSplits(), plain)
    assert ops(plain)["Split"] == 0
    # Behind a norm a Split stays: two in each global-local filter.
    run_pass(FuseChannelLayerNorm(), filtered)
    run_pass(FoldScales(), filtered)
    run_pass(DistributeSplits(), filtered)
    assert ops(filtered)["Split"] == 4


def test_clean_up_leaves_nothing_unused_and_no_foreign_notes(traced: Traced) -> None:
    model = traced.model.clone()
    node = next(node for node in model.graph if node.op_type == "Gelu")
    dead = ir.node("Identity", node.outputs)
    model.graph.append(dead)
    assert run_pass(CleanUp(), model).rewrites == 1
    assert ops(model)["Identity"] == 0
    assert all(set(each.metadata_props) == {"pkg.torch.onnx.name_scopes"} for each in model.graph)


def test_names_lead_back_to_the_module(traced_small_gf: Traced) -> None:
    model = traced_small_gf.model.clone()
    for each in PORTABLE:
        run_pass(each, model)
    names = {node.name for node in model.graph}
    assert {"stages.2.0.gnconv.proj_in/Conv", "stages.0.0.norm1/LayerNormalization", "head/Gemm"} <= names
    assert all(node.name.startswith(f"{module_of(node) or 'model'}/") for node in model.graph)
    weights = set(model.graph.initializers)
    assert {"stages.0.0.pwconv1.weight", "stages.2.0.gnconv.dwconv.filter.real", "dft14x14.inverse"} <= weights
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["input", "logits"]


def conv_split(consumer_of_whole: bool) -> ir.Model:
    """Conv -> Split in two; with `consumer_of_whole` something else reads the convolution too."""
    x = ir.val("input", ir.DataType.FLOAT, ["batch", 3, 4, 4])
    w = ir.val("w", const_value=ir.tensor(np.random.RandomState(0).randn(32, 3, 1, 1).astype(np.float32), name="w"))
    conv = ir.node("Conv", [x, w])
    conv.outputs[0].shape, conv.outputs[0].type = ir.Shape(["batch", 32, 4, 4]), x.type
    split = ir.node("Split", conv.outputs, {"axis": 1, "num_outputs": 2}, num_outputs=2)
    for part in split.outputs:
        part.shape, part.type = ir.Shape(["batch", 16, 4, 4]), x.type
    joined = ir.node("Mul", split.outputs)
    nodes = [conv, split, joined]
    outputs = [joined.outputs[0]]
    if consumer_of_whole:
        nodes.append(ir.node("Neg", conv.outputs))
        outputs.append(nodes[-1].outputs[0])
    for i, each in enumerate(outputs):
        each.name, each.type, each.shape = f"y{i}", x.type, None
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=[w], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(("shared", "splits"), [(False, 0), (True, 1)])
def test_a_split_is_left_alone_where_its_convolution_is_read_whole(shared: bool, splits: int) -> None:
    model = conv_split(shared)
    x = support.image(2, 3, 4, 4)
    before = support.run_model(model.clone(), x)
    run_pass(DistributeSplits(), model)
    assert ops(model)["Split"] == splits
    for old, new in zip(before, support.run_model(model, x), strict=True):
        assert np.abs(old - new).max() <= 1e-6


def scaled(
    make: Callable[[ir.Value], list[ir.Node]],
    factor: np.ndarray,
    shape: list[int | str],
    result: list[int | str] | None = None,
) -> ir.Model:
    """input -> make's nodes -> Mul by a factor."""
    x = ir.val("input", ir.DataType.FLOAT, shape)
    nodes = make(x)
    last = nodes[-1].outputs[0]
    constant = ir.val("factor", const_value=ir.tensor(factor.astype(np.float32), name="factor"))
    mul = ir.node("Mul", [constant, last])
    mul.outputs[0].name, mul.outputs[0].type = "y", x.type
    mul.outputs[0].shape = ir.Shape(result) if result is not None else last.shape
    weights = {v for node in (*nodes, mul) for v in node.inputs if v.const_value is not None}
    graph = ir.Graph(
        [x], mul.outputs, nodes=[*nodes, mul], initializers=list(weights), opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def weight(name: str, *shape: int) -> ir.Value:
    array = np.random.RandomState(len(name)).standard_normal(shape).astype(np.float32)
    return ir.val(name, const_value=ir.tensor(array, name=name))


def typed(node: ir.Node, *shape: int | str) -> ir.Node:
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return node


def gemm(x: ir.Value, trans: int) -> list[ir.Node]:
    matrix = weight("matrix", *((5, 4) if trans else (4, 5)))
    return [typed(ir.node("Gemm", [x, matrix, weight("b", 5)], {"transB": trans}), "batch", 5)]


def linear(x: ir.Value) -> list[ir.Node]:
    product = typed(ir.node("MatMul", [x, weight("matrix", 4, 5)]), "batch", 5)
    return [product, typed(ir.node("Add", [weight("bias", 5), product.outputs[0]]), "batch", 5)]


def broadcast_linear(x: ir.Value) -> list[ir.Node]:
    """A bias of a higher rank than the layer."""
    product = typed(ir.node("MatMul", [x, weight("matrix", 4, 5)]), "batch", 5)
    return [product, typed(ir.node("Add", [product.outputs[0], weight("bias", 3, 1, 5)]), 3, "batch", 5)]


@pytest.mark.parametrize(
    ("make", "factor", "folds"),
    [
        (lambda x: gemm(x, 0), np.arange(1, 6), 1),
        (lambda x: gemm(x, 1), np.arange(1, 6), 1),
        (linear, np.arange(1, 6), 1),
        (linear, np.array(0.5), 1),
        (linear, np.arange(1, 11).reshape(2, 5), 0),  # a factor per row is no weight's
        (broadcast_linear, np.arange(1, 6), 0),
        (lambda x: [typed(ir.node("Relu", [x]), "batch", 4)], np.arange(1, 5), 0),
    ],
    ids=["gemm", "gemm-transposed", "linear", "scalar", "per-row", "broadcast", "no-weights"],
)
def test_factors_fold_into_each_kind_of_layer_or_stay(make, factor: np.ndarray, folds: int) -> None:
    model = scaled(make, factor, ["batch", 4])
    x = support.image(2, 4)
    (before,) = support.run_model(model.clone(), x)
    assert run_pass(FoldScales(), model).rewrites == folds
    assert ops(model)["Mul"] == 1 - folds
    assert np.abs(support.run_model(model, x)[0] - before).max() <= 1e-5


def vector_product(x: ir.Value) -> list[ir.Node]:
    return [typed(ir.node("MatMul", [x, weight("vector", 4)]), 2, 5)]


def test_factors_that_no_weight_can_take_are_left_alone() -> None:
    """A product with a vector has no features, and a factor of higher rank changes the shape."""
    x = support.image(2, 5, 4)
    for factor, result in ((np.arange(1, 6), [2, 5]), (np.ones((3, 1, 5)) * 2, [3, 2, 5])):
        model = scaled(vector_product, factor, [2, 5, 4], result)
        (before,) = support.run_model(model.clone(), x)
        assert run_pass(FoldScales(), model).rewrites == 0
        assert np.array_equal(support.run_model(model, x)[0], before)


def written_out_norm(shape: list[int], affine: tuple[int, ...]) -> ir.Model:
    """A norm over axis 1 in primitives, with weight and bias of a given shape."""
    x = ir.val("input", ir.DataType.FLOAT, shape)
    constants = {
        name: ir.val(name, const_value=ir.tensor(np.array(value), name=name))
        for name, value in (("axes", [1]), ("two", np.float32(2)), ("eps", np.float32(1e-6)))
    }
    scale, bias = weight("scale", *affine), weight("bi", *affine)
    full, kept = tuple(shape), (shape[0], 1, *shape[2:])
    mean = typed(ir.node("ReduceMean", [x, constants["axes"]], {"keepdims": 1}), *kept)
    centred = typed(ir.node("Sub", [x, mean.outputs[0]]), *full)
    square = typed(ir.node("Pow", [centred.outputs[0], constants["two"]]), *full)
    variance = typed(ir.node("ReduceMean", [square.outputs[0], constants["axes"]], {"keepdims": 1}), *kept)
    padded = typed(ir.node("Add", [variance.outputs[0], constants["eps"]]), *kept)
    root = typed(ir.node("Sqrt", padded.outputs), *kept)
    divided = typed(ir.node("Div", [centred.outputs[0], root.outputs[0]]), *full)
    scaled_ = typed(ir.node("Mul", [divided.outputs[0], scale]), *full)
    shifted = typed(ir.node("Add", [scaled_.outputs[0], bias]), *full)
    shifted.outputs[0].name = "y"
    nodes = [mean, centred, square, variance, padded, root, divided, scaled_, shifted]
    initializers = [*constants.values(), scale, bias]
    graph = ir.Graph([x], shifted.outputs, nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(
    ("shape", "affine", "fused"),
    [
        ([2, 6, 5, 6], (6, 1, 1), 1),
        ([2, 6, 5, 6], (1, 6, 1, 1), 1),
        ([2, 6, 5, 6], (6,), 0),  # along the width, which is as long as the channels
        ([2, 6, 5], (6, 1), 0),
    ],
)
def test_only_norms_with_channel_weights_are_fused(shape: list[int], affine: tuple[int, ...], fused: int) -> None:
    model = written_out_norm(shape, affine)
    x = support.image(*shape)
    (before,) = support.run_model(model.clone(), x)
    assert run_pass(FuseChannelLayerNorm(), model).rewrites == fused
    assert support.relative_error(support.run_model(model, x)[0], before) <= 1e-5


def test_transposes_that_cancel_between_input_and_outputs_keep_all_names() -> None:
    x = ir.val("input", ir.DataType.FLOAT, [2, 3, 4, 5])
    there = ir.node("Transpose", [x], {"perm": (0, 2, 3, 1)})
    back = ir.node("Transpose", there.outputs, {"perm": (0, 3, 1, 2)})
    again = ir.node("Transpose", back.outputs, {"perm": (0, 2, 3, 1)})
    reverse = ir.node("Transpose", [x])
    for name, node in (("there", there), ("back", back), ("again", again), ("reverse", reverse)):
        node.outputs[0].name, node.outputs[0].type = name, x.type
    outputs = [node.outputs[0] for node in (there, back, again, reverse)]
    graph = ir.Graph([x], outputs, nodes=[there, back, again, reverse], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    batch = support.image(2, 3, 4, 5)
    before = support.run_model(model.clone(), batch)
    for each in (MergeTransposes(), CleanUp()):
        run_pass(each, model)
    assert [value.name for value in model.graph.inputs] == ["input"]
    assert [value.name for value in model.graph.outputs] == ["there", "back", "again", "reverse"]
    for old, new in zip(before, support.run_model(model, batch), strict=True):
        assert np.array_equal(old, new)


def test_merged_transposes_compose() -> None:
    x = ir.val("input", ir.DataType.FLOAT, [2, 3, 4, 5])
    first = ir.node("Transpose", [x], {"perm": (0, 2, 3, 1)})
    second = ir.node("Transpose", first.outputs, {"perm": (3, 0, 1, 2)})
    back = ir.node("Transpose", second.outputs, {"perm": (1, 0, 3, 2)})
    for node in (first, second, back):
        node.outputs[0].type = x.type
    back.outputs[0].name = "y"
    graph = ir.Graph([x], back.outputs, nodes=[first, second, back], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    batch = support.image(2, 3, 4, 5)
    (before,) = support.run_model(model.clone(), batch)
    run_pass(MergeTransposes(), model)
    assert ops(model)["Transpose"] == 1
    assert np.array_equal(support.run_model(model, batch)[0], before)


class _Liar(Pass):
    def rewrite(self, model: ir.Model) -> int:
        return 0

    def ensures(self, graph: ir.Graph) -> str | None:
        return "a Sqrt is left"


def test_a_broken_promise_is_an_error_that_names_the_pass(traced_small_7x7: Traced) -> None:
    with pytest.raises(LoweringError, match="_Liar did not keep its promise: a Sqrt is left"):
        run_pass(_Liar(), traced_small_7x7.model.clone())


def test_naming_twice_changes_nothing(traced_small_gf: Traced) -> None:
    model = traced_small_gf.model.clone()
    for each in PORTABLE:
        run_pass(each, model)
    names = [node.name for node in model.graph], sorted(model.graph.initializers)
    run_pass(NameAfterModules(), model)
    assert ([node.name for node in model.graph], sorted(model.graph.initializers)) == names

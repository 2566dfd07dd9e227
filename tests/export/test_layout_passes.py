# SPDX-License-Identifier: Apache-2.0
"""The passes that fold constants and choose layouts: the numbers of every family, and where each must not apply."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import small_models
import support

from metaformer_export.artifacts import Traced
from metaformer_export.export.graph import attribute, constant, module_of, producer
from metaformer_export.export.passes.affine_after_pooling import AffineAfterPooling
from metaformer_export.export.passes.affine_to_depthwise_conv import AffineToDepthwiseConv
from metaformer_export.export.passes.base import Pass, run_pass
from metaformer_export.export.passes.catalog import FORMS, INT8, OPENVINO_INT8
from metaformer_export.export.passes.compose_channel_mixing import ComposeChannelMixing
from metaformer_export.export.passes.distribute_splits import DistributeSplits
from metaformer_export.export.passes.expand_mixer_ops import ExpandMixerOps
from metaformer_export.export.passes.fold_affine_into_next import FoldAffineIntoNext
from metaformer_export.export.passes.linear_maps_to_conv import LinearMapsToConv
from metaformer_export.export.passes.linear_to_pointwise_conv import LinearToPointwiseConv
from metaformer_export.export.passes.merge_factors import MergeFactors
from metaformer_export.export.passes.merge_transposes import MergeTransposes
from metaformer_export.export.passes.pointwise_conv_to_linear import PointwiseConvToLinear
from metaformer_export.export.passes.pooling_residual_to_conv import PoolingResidualToConv
from metaformer_export.export.passes.residuals_to_channels_first import ResidualsToChannelsFirst
from metaformer_export.export.passes.square_by_product import SquareByProduct
from metaformer_export.export.passes.static_reshapes import StaticReshapes
from metaformer_export.export.passes.stripes_to_groups import StripesToGroups
from metaformer_export.export.passes.write_out_layer_norm import WriteOutLayerNorm
from metaformer_export.runtime import eager

FOLDED = (
    "convformer",
    "caformer",
    "poolformer",
    "poolformerv2",
    "focalnet",
    "focalnet_huge",
    "acmix_swin",
    "acmix_resnet",
    "boat_cswin",
)


def small(kind: str) -> tuple[Traced, np.ndarray, np.ndarray]:
    """A small model, traced, with a batch and eager's logits of it."""
    found = small_models.small(kind)
    x = support.image(2, 3, *found.traced.spec.image_size)
    return found.traced, x, eager.run(found.module, x)[0]


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("kind", FOLDED)
def test_every_form_keeps_the_numbers(kind: str) -> None:
    traced, x, want = small(kind)
    assert want.std() > 0.05
    for form in ("portable", "int8", "openvino", "openvino_int8"):
        model = traced.model.clone()
        for each in FORMS[form]:
            run_pass(each, model)
        assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5, form


def after(traced: Traced, *passes: Pass) -> tuple[ir.Model, list[int]]:
    model = traced.model.clone()
    return model, [run_pass(each, model).rewrites for each in passes]


def test_poolformers_norms_lose_their_affine_part() -> None:
    traced, x, want = small("poolformer")
    model, (shapes, folded, moved, merged) = after(
        traced, StaticReshapes(), FoldAffineIntoNext(), AffineAfterPooling(), MergeFactors()
    )
    # Five blocks of two norms, and the last norm in front of the head's mean, which keeps its affine part.
    assert (shapes, folded, moved, merged) == (11, 10, 5, 5)
    assert ops(model)["Shape"] == 0
    assert ops(model)["Mul"] == 5 + 5 + 1  # one factor per mixer, one layer scale per MLP, one in the last norm
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5
    assert run_pass(PoolingResidualToConv(), model).rewrites == 5
    assert ops(model)["Sub"] == 0
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


def test_convolutions_in_stripes_are_groups_of_one_over_the_map() -> None:
    traced, x, want = small("boat_cswin")
    model, (_, rewritten, _) = after(traced, StaticReshapes(), StripesToGroups(), ExpandMixerOps())
    # Two branches in each of four blocks, one in the last; stripes of 1, 2, 7 and 7 tokens on maps of 56, 28, 14 and 7.
    assert rewritten == 9
    local = [node for node in model.graph if node.op_type == "Conv" and ".attns." in module_of(node)]
    groups = [attribute(node, "group") for node in local]
    assert groups == [8 * 56, 8 * 56, 16 * 14, 16 * 14, 32 * 2, 32 * 2, 32 * 2, 32 * 2, 128]
    assert not [node for node in model.graph if attribute(node, "perm", ()) == (0, 1, 3, 5, 2, 4)]
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5
    assert run_pass(StripesToGroups(), model).rewrites == 0


def test_star_relu_folds_or_becomes_a_depthwise_convolution() -> None:
    traced, x, want = small("convformer")
    model, (_, squares, _, hoisted, _, affine) = after(
        traced,
        FoldAffineIntoNext(),
        SquareByProduct(),
        ResidualsToChannelsFirst(),
        LinearToPointwiseConv(),
        MergeTransposes(),
        AffineToDepthwiseConv(),
    )
    assert squares >= 10  # one in each mixer, one in each MLP of five blocks, and the head's
    assert hoisted >= 20
    assert affine == 5  # the padded convolution of a mixer takes no offset, the MLP's second layer does
    assert ops(model)["Pow"] == 0
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


@pytest.mark.parametrize(
    ("kind", "linear", "kept"),
    [
        ("poolformer", 10, 0),  # both layers of five MLPs, with the GELU between them
        ("focalnet", 5, 0),  # the context's projections, behind depthwise filters and gates
        ("hornet", 0, 32),  # beside 7x7 filters and the gates that multiply their results
        ("acmix_resnet", 1, 27),  # a ResNet's, with ReLUs and sums between them
    ],
)
def test_pointwise_convolutions_become_linear_unless_beside_others(kind: str, linear: int, kept: int) -> None:
    traced, x, want = small(kind)
    model, before = traced.model.clone(), 0
    for each in INT8:
        before = pointwise(model) if isinstance(each, PointwiseConvToLinear) else before
        run_pass(each, model)
    assert (before - pointwise(model), pointwise(model)) == (linear, kept)
    gelus = [node for node in model.graph if node.op_type == "Gelu" and producer(node.inputs[0], "Add") is not None]
    assert (len(gelus) >= 4) == (kind != "acmix_resnet")
    assert not any(use.node.op_type == "Transpose" for node in gelus for use in node.outputs[0].uses())
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


@pytest.mark.parametrize(
    ("kind", "norms", "layers"),
    [
        ("focalnet", 9, 20),
        ("caformer", 8, 20),  # queries, keys and values of three blocks, which read tokens, among them
        ("acmix_swin", 12, 38),
        ("boat_swin", 15, 38),
    ],
)
def test_for_openvino_in_eight_bits_maps_go_through_convolutions_alone(kind: str, norms: int, layers: int) -> None:
    traced, x, want = small(kind)
    model, rewrites = traced.model.clone(), {}
    for each in OPENVINO_INT8:
        rewrites[type(each)] = run_pass(each, model).rewrites
    assert (rewrites[WriteOutLayerNorm], rewrites[LinearMapsToConv]) == (norms, layers)
    read = [node.inputs[0] for node in model.graph if node.op_type == "MatMul" and constant(node.inputs[1]) is not None]
    assert [value.name for value in read if len(value.shape) == 4] == []
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


def test_a_linear_layer_on_tokens_of_a_map_is_moved_in_front_of_the_reshape() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5, 4), (4, 6), (6,)))
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[N,3,5,4] input) => (float[N,15,6] output) {{
            shape = Constant <value_ints: ints = [0, 15, 4]> ()
            weight = Constant <value = float[4,6] {{ {", ".join(map(str, weight.ravel()))} }}> ()
            bias = Constant <value = float[6] {{ {", ".join(map(str, bias))} }}> ()
            tokens = Reshape (input, shape)
            product = MatMul (tokens, weight)
            output = Add (product, bias)
        }}"""
    )
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    assert run_pass(LinearMapsToConv(), graph).rewrites == 1
    assert ops(graph) == Counter(Transpose=2, Conv=1, Reshape=1)
    want = x.astype(np.float64).reshape(2, 15, 4) @ weight + bias
    assert support.relative_error(support.run_model(graph, x)[0], want) <= 1e-6


def pointwise(model: ir.Model) -> int:
    """1x1 convolutions that mix channels."""
    convolutions = [node for node in model.graph if node.op_type == "Conv" and attribute(node, "group", 1) == 1]
    return sum(tuple(node.inputs[1].shape)[2:] == (1, 1) for node in convolutions)


def test_the_residual_stream_is_channels_first() -> None:
    traced, x, want = small("focalnet")
    model, (turned,) = after(traced, ResidualsToChannelsFirst())
    assert turned == 10  # two sums in each of five blocks
    sums = [node for node in model.graph if node.op_type == "Add" and all(constant(v) is None for v in node.inputs)]
    maps = [node.outputs[0].shape for node in sums if node.outputs[0].shape is not None]
    assert [shape[1] for shape in maps if len(shape) == 4 and shape[1] in (16, 32, 64, 128)] != []
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


@pytest.mark.parametrize(("kind", "layers"), [("acmix_swin", 7), ("acmix_resnet", 4)])
def test_channel_mixing_is_composed_with_its_projections(kind: str, layers: int) -> None:
    traced, x, want = small(kind)
    model, (_, composed, _) = after(traced, StaticReshapes(), ComposeChannelMixing(), ExpandMixerOps())
    assert composed == layers
    read = {value.name for node in model.graph for value in node.inputs if value is not None and value.name}
    assert not [name for name in read if name.endswith(".fc.weight")]
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


def linear_chain(
    shape: list[int | str], operator: str, numbers: np.ndarray, weight: np.ndarray, attributes: dict[str, object]
) -> ir.Model:
    """input -> Mul or Add by numbers -> a layer with that weight."""
    x = ir.val("input", ir.DataType.FLOAT, shape)
    values = {
        name: ir.val(name, const_value=ir.tensor(array.astype(np.float32), name=name))
        for name, array in (("numbers", numbers), ("weight", weight))
    }
    changed = ir.node(operator, [x, values["numbers"]])
    changed.outputs[0].shape, changed.outputs[0].type = x.shape, x.type
    layer = ir.node("MatMul" if weight.ndim == 2 else "Conv", [changed.outputs[0], values["weight"]], attributes)
    out = layer.outputs[0]
    out.name, out.type, out.shape = "y", x.type, None
    graph = ir.Graph(
        [x], [out], nodes=[changed, layer], initializers=list(values.values()), opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=10)


RANDOM = np.random.RandomState(0)


@pytest.mark.parametrize(
    ("operator", "numbers", "weight", "attributes", "folds"),
    [
        ("Mul", RANDOM.randn(6), RANDOM.randn(6, 4), {}, 1),
        ("Add", RANDOM.randn(6), RANDOM.randn(6, 4), {}, 1),
        ("Mul", RANDOM.randn(5, 1), RANDOM.randn(6, 4), {}, 0),  # a factor for each row
        ("Mul", RANDOM.randn(6, 1, 1), RANDOM.randn(4, 6, 3, 3), {"pads": (1, 1, 1, 1)}, 1),
        ("Add", RANDOM.randn(6, 1, 1), RANDOM.randn(4, 6, 3, 3), {"pads": (1, 1, 1, 1)}, 0),  # padding is not offset
        ("Add", RANDOM.randn(6, 1, 1), RANDOM.randn(4, 6, 3, 3), {}, 1),
        ("Add", np.array(0.7), RANDOM.randn(4, 6, 3, 3), {"auto_pad": "SAME_UPPER"}, 0),
        ("Mul", RANDOM.randn(6, 1, 1), RANDOM.randn(6, 1, 3, 3), {"group": 6, "pads": (1, 1, 1, 1)}, 1),
        ("Add", RANDOM.randn(6, 1, 1), RANDOM.randn(4, 3, 1, 1), {"group": 2}, 1),
        ("Mul", np.array(0.7), RANDOM.randn(4, 3, 1, 1), {"group": 2}, 1),
    ],
)
def test_an_affine_part_folds_into_the_next_layer_or_stays(
    operator: str, numbers: np.ndarray, weight: np.ndarray, attributes: dict[str, object], folds: int
) -> None:
    shape: list[int | str] = ["batch", 5, 6] if weight.ndim == 2 else ["batch", 6, 7, 7]
    model = linear_chain(shape, operator, numbers, weight, attributes)
    x = support.image(*(2, *shape[1:]))  # type: ignore[arg-type]
    (before,) = support.run_model(model.clone(), x)
    assert run_pass(FoldAffineIntoNext(), model).rewrites == folds
    assert (
        len([node for node in model.graph if node.op_type == "Mul"])
        == (operator == "Mul") - (operator == "Mul") * folds
    )
    (now,) = support.run_model(model, x)
    assert np.abs(now - before).max() <= 1e-5 * np.abs(before).max()


def test_narrow_parts_stay_in_one_convolution() -> None:
    traced, x, want = small("focalnet")
    model, _ = after(traced, ResidualsToChannelsFirst(), LinearToPointwiseConv(), MergeTransposes(), DistributeSplits())
    # The gates of a level are one channel: five blocks keep one Split of three gates each.
    splits = [node for node in model.graph if node.op_type == "Split"]
    assert [len(node.outputs) for node in splits] == [3] * 5
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


def test_queries_keys_and_values_get_layers_of_their_own() -> None:
    traced, x, want = small("caformer")
    before = sum(node.op_type == "MatMul" and constant(node.inputs[1]) is not None for node in traced.model.graph)
    model, (splits,) = after(traced, DistributeSplits())
    layers = sum(node.op_type == "MatMul" and constant(node.inputs[1]) is not None for node in model.graph)
    assert (splits, layers - before) == (3, 6)  # three attention blocks, one layer becomes three
    assert ops(model)["Split"] == 0
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5

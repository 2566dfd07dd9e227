# SPDX-License-Identifier: Apache-2.0
"""TensorRT's parser takes every graph that we make, and what it does not take is named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest
from small_models import KINDS, small

from metaformer_export.artifacts import Lowered
from metaformer_export.calibration.quantize import observed, quantize
from metaformer_export.export.graph import SCOPES
from metaformer_export.export.lower import lower_all
from metaformer_export.export.ops.catalog import OPS
from metaformer_export.export.ops.mixer_op import DOMAIN
from metaformer_export.export.precision import convert
from metaformer_export.runtime.tensorrt.known_issues import Version
from metaformer_export.runtime.tensorrt.lint import lint
from metaformer_export.runtime.tensorrt.restrictions import BREAKS
from metaformer_export.runtime.tensorrt.support import check_support, operators

VERSIONS: tuple[Version, ...] = ((10, 8), (10, 14), (11, 0), (11, 4))
PLUGINS = frozenset(op.op_type for op in OPS)
NONE: frozenset[str] = frozenset()
QUICK = ("acmix_resnet", "boat_swin", "caformer", "focalnet_huge", "hornet_gf")
"""One kind of every family of mixers, all mixer ops among them."""
KIND_PARAMS = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@dataclass(frozen=True)
class Forms:
    """One small model in both forms, and quantised for TensorRT."""

    portable: Lowered
    plugin: Lowered
    int8: ir.Model

    def graphs(self, lowered: Lowered) -> list[ir.Model]:
        return [convert(lowered, "fp32").model, convert(lowered, "fp16").model, convert(lowered, "bf16").model]


@pytest.fixture(scope="module", params=KIND_PARAMS)
def forms(request: pytest.FixtureRequest) -> Forms:
    portable, plugin = lower_all(small(request.param).traced, ("portable", "plugin"))
    ranges = dict.fromkeys(observed(portable), (-1.0, 1.0))  # what is quantised does not depend on them
    return Forms(portable, plugin, quantize(portable, ranges, "tensorrt", max_abs={}).model)


def test_every_family_is_taken_in_every_precision(forms: Forms) -> None:
    for version in VERSIONS:
        for model in (*forms.graphs(forms.portable), forms.int8):
            assert [each.message for each in check_support(model, version, NONE)] == []
        for model in forms.graphs(forms.plugin):
            assert [each.message for each in check_support(model, version, PLUGINS)] == []


def test_no_error_is_known_of_any_family(forms: Forms) -> None:
    for version in (*VERSIONS, (11, 2, 1)):
        for model in (*forms.graphs(forms.portable), forms.int8, *forms.graphs(forms.plugin)):
            assert [each for each in lint(model, version, batch=(1, 8, 16)) if each.severity == "error"] == []


def test_without_plugins_only_the_loop_of_a_clustering_is_refused(forms: Forms) -> None:
    """The other function bodies are taken: If, Range, Mod and 7D transposes are."""
    for model in forms.graphs(forms.plugin):
        clusterings = [node for node in model.graph if node.op_type == "BalancedClustering"]
        for version in VERSIONS:
            refusals = check_support(model, version, NONE)
            assert [each.node for each in refusals] == [node.name for node in clusterings]
            assert {(each.op_type, each.body_of) for each in refusals} <= {("Loop", "BalancedClustering")}
            assert check_support(model, version, frozenset({"BalancedClustering"})) == ()


def test_without_plugins_and_bodies_every_mixer_op_is_refused(forms: Forms) -> None:
    model = convert(forms.plugin, "fp16").model.clone()
    model.functions.clear()
    mixers = [node for node in model.graph if node.domain == DOMAIN]
    refusals = check_support(model, (11, 4), NONE)
    assert [(each.node, each.op_type, each.body_of) for each in refusals] == [(n.name, n.op_type, "") for n in mixers]


def model(graph: str, opset: int = 20, functions: str = "") -> ir.Model:
    """A model of a graph as text, with types; its nodes come from modules called after their operators."""
    text = f'<ir_version: 10, opset_import: ["": {opset}, "{DOMAIN}": 1]> g {graph} {functions}'
    made = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    for node in ir.traversal.RecursiveGraphIterator(made.graph):
        node.metadata_props[SCOPES] = f"['', 'stages.0.{node.op_type.lower()}', '{node.op_type}']"
    return made


def messages(graph: str, version: Version = (11, 4), opset: int = 20, functions: str = "") -> list[str]:
    return [each.message for each in check_support(model(graph, opset, functions), version, NONE)]


def test_a_refusal_names_operator_types_and_module() -> None:
    assert messages("(float[3, 3] x) => (float y) {y = Det(x)}") == [
        "Det (FP32) of stages.0.det: TensorRT 11.4 does not have this operator"
    ]
    assert messages("(double[1, 2] x) => (double[1, 2] y) {y = Relu(x)}", (10, 8)) == [
        "Relu (FP64) of stages.0.relu: TensorRT 10.8 has it in FP32, FP16, BF16, INT32, INT64 only"
    ]
    assert messages("(float[1, 2] x) => (float[1, 2] y) {y = Bernoulli(x)}", (10, 8)) == [
        "Bernoulli (FP32) of stages.0.bernoulli: "
        "this operator is not among those known of TensorRT (operators.json); look it up"
    ]


def test_a_refusal_says_the_note_of_the_table() -> None:
    assert messages("(float16[1, 2, 9] x) => (float16[1, 2, 7] y) {y = AveragePool<kernel_shape = [3]>(x)}") == [
        "AveragePool (FP16) of stages.0.averagepool: TensorRT 11.4 has it only so: "
        "2D or 3D; dilations all ones; MaxPool without Indices"
    ]


def test_a_refusal_in_a_function_body_names_the_mixer_op_and_its_module() -> None:
    body = f'<domain: "{DOMAIN}", opset_import: ["": 20]> Mixer (a) => (b) {{c = Relu(a)\n b = Det(c)}}'
    assert messages(f"(float[3, 3] x) => (float y) {{y = {DOMAIN}.Mixer(x)}}", functions=body) == [
        "Det (FP32) in the function body of Mixer of stages.0.mixer: TensorRT 11.4 does not have this operator; "
        "build with the plugin, or from the portable form"
    ]


def test_types_in_a_function_body_are_those_of_the_call() -> None:
    body = f'<domain: "{DOMAIN}", opset_import: ["": 20]> Mixer (a) => (b) {{b = Softmax(a)}}'
    call = f"(TYPE[3, 3] x) => (TYPE[3, 3] y) {{y = {DOMAIN}.Mixer(x)}}"
    assert messages(call.replace("TYPE", "bfloat16"), functions=body) == []
    (message,) = messages(call.replace("TYPE", "double"), functions=body)
    assert message.startswith("Softmax (FP64) in the function body of Mixer of stages.0.mixer: ")


def test_a_call_with_other_inputs_than_the_body_is_refused() -> None:
    body = f'<domain: "{DOMAIN}", opset_import: ["": 20]> Mixer (a, b) => (c) {{c = Add(a, b)}}'
    made = model(f"(float[3] x, float[3] z) => (float[3] y) {{y = {DOMAIN}.Mixer(x, z)}}", functions=body)
    made.graph.node(0).resize_inputs(1)
    (refusal,) = check_support(made, (10, 15), NONE)
    assert refusal.reason == "it has 1 inputs, its function body 2"


def test_graphs_in_nodes_are_checked() -> None:
    branches = """(float[2, 2] x, bool c) => (float y) {
        y = If(c) <
            then_branch = one () => (float a) {a = Det(x)},
            else_branch = two () => (float b) {b = ReduceSum<keepdims = 0>(x)}>}"""
    assert [message.split(":")[0] for message in messages(branches)] == ["Det (FP32) of stages.0.det"]


@pytest.mark.parametrize(
    ("node", "opset", "before", "since"),
    [
        ("(float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {y = Attention(x, x, x)}", 23, (10, 13), (10, 14)),
        ("(float[1, 8] x, float[8] s) => (float[1, 8] y) {y = RMSNormalization(x, s)}", 23, (10, 14), (10, 15)),
        ("(float[1, 8] x) => (float[1, 8] y) {y = Swish(x)}", 24, (10, 16), (11, 0)),
        (
            "(float[1, 8, 6, 1] x) => (float[1, 8, 6, 2] y) {a = Constant<value_int = -2>()\n y = DFT(x, , a)}",
            20,
            (11, 1),
            (11, 2),
        ),
        (
            "(float[1, 4, 8] x, float[4] s) => (float[1, 4, 8] y) {y = GroupNormalization<num_groups = 2>(x, s, s)}",
            21,
            (10, 8),
            (10, 9),
        ),
    ],
)
def test_an_operator_is_taken_from_its_version_on(node: str, opset: int, before: Version, since: Version) -> None:
    assert messages(node, since, opset) == []
    (message,) = messages(node, before, opset)
    named = [".".join(map(str, version)) for version in (before, since)]
    assert message.endswith(f": TensorRT {named[0]} does not have it in opset {opset}, {named[1]} does")


MAP = "(float[1, 2, 8, 8] x) => (float y) "
BROKEN: dict[str, tuple[str, str]] = {
    "Attention": (
        "(float[1, 4, 8] x) => (float[1, 4, 8] y) {y = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x)}",
        "(float[1, 2, 4, 8] x) => (float[1, 2, 4, 8] y) {y = Attention(x, x, x)}",
    ),
    "AveragePool": (
        MAP + "{y = AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(x)}",
        MAP + "{y = AveragePool<kernel_shape = [2, 2], dilations = [1, 1]>(x)}",
    ),
    "BatchNormalization": (
        "(float[1, 2] x, float[2] s) => (float y) {y, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s)}",
        "(float[1, 2] x, float[2] s) => (float y) {y = BatchNormalization(x, s, s, s, s)}",
    ),
    "CumSum": (
        "(float[2, 3] x, int64 axis) => (float[2, 3] y) {y = CumSum(x, axis)}",
        "(float[2, 3] x) => (float[2, 3] y) <int64 axis = {1}> {y = CumSum(x, axis)}",
    ),
    "DFT": (
        "(float[1, 8, 8, 1] x) => (float[1, 8, 8, 2] y) {a = Constant<value_int = -3>()\n y = DFT(x, , a)}",
        "(float[1, 8, 8, 1] x) => (float[1, 8, 8, 2] y) {a = Constant<value_int = 2>()\n y = DFT(x, , a)}",
    ),
    "GridSample": (
        "(float[1, 1, 2, 2, 2] x, float[1, 2, 2, 2, 3] g) => (float[1, 1, 2, 2, 2] y) {y = GridSample(x, g)}",
        "(float[1, 1, 2, 2] x, float[1, 2, 2, 2] g) => (float[1, 1, 2, 2] y) {y = GridSample(x, g)}",
    ),
    "If": (
        """(float[2] x, bool c) => (float[N] y) {y = If(c) <
            then_branch = one () => (float[2] a) {a = Relu(x)},
            else_branch = two () => (float[2] a) {a = Neg(x)}>}""",
        """(float[2] x, bool c) => (float[N] y) {y = If(c) <
            then_branch = one () => (float[2] a) {a = Relu(x)},
            else_branch = two () => (float[2] b) {b = Neg(x)}>}""",
    ),
    "LayerNormalization": (
        "(float[1, 8] x, float[8] s) => (float[1, 8] y, float[1, 1] m) {y, m = LayerNormalization(x, s)}",
        "(float[1, 8] x, float[8] s) => (float[1, 8] y) {y = LayerNormalization(x, s)}",
    ),
    "Loop": (
        """(float[8] x, int64[1] n) => (float[8] y, int64[1] m) <int64 trips = {3}> {
        y, m = Loop(trips, , x, n) <body = step (int64 i, bool go, float[8] a, int64[1] k)
            => (bool on, float[8] b, int64[1] l) {
                on = Identity(go)
                l = Add(k, k)
                b = Expand(a, l)}>}""",
        """(float[8] x, int64[1] n) => (float[8] y, int64[1] m) <int64 trips = {3}> {
        y, m = Loop(trips, , x, n) <body = step (int64 i, bool go, float[8] a, int64[1] k)
            => (bool on, float[8] b, int64[1] l) {
                on = Identity(go)
                l = Add(k, k)
                s = Shape(a)
                b = Expand(a, s)}>}""",
    ),
    "LpPool": (
        MAP + "{y = LpPool<kernel_shape = [2, 2], dilations = [2, 2]>(x)}",
        MAP + "{y = LpPool<kernel_shape = [2, 2]>(x)}",
    ),
    "MaxPool": (
        "(float[1, 2, 8, 8] x) => (float y, int64 i) {y, i = MaxPool<kernel_shape = [2, 2]>(x)}",
        MAP + "{y = MaxPool<kernel_shape = [2, 2]>(x)}",
    ),
    "OneHot": (
        "(int64[2] x, int64 d, float[2] v) => (float y) {y = OneHot(x, d, v)}",
        "(int64[2] x, float[2] v) => (float y) <int64 d = {4}> {y = OneHot(x, d, v)}",
    ),
    "Resize": (
        '(float[1, 2, 8, 8] x, float[4] s) => (float y) {y = Resize<mode = "cubic">(x, , s)}',
        '(float[1, 2, 8, 8] x, float[4] s) => (float y) {y = Resize<mode = "linear">(x, , s)}',
    ),
    "STFT": (
        "(float[1, 64, 1] x, int64 step, float[16] w) => (float y) {y = STFT(x, step, w)}",
        "(float[1, 64, 1] x) => (float y) <int64 step = {8}, float[2] w = {1.0, 1.0}> {y = STFT(x, step, w)}",
    ),
    "ScatterND": (
        '(float[4] x, int64[1, 1] i, float[1] u) => (float[4] y) {y = ScatterND<reduction = "add">(x, i, u)}',
        "(float[4] x, int64[1, 1] i, float[1] u) => (float[4] y) {y = ScatterND(x, i, u)}",
    ),
    "Squeeze": (
        "(float[1, 4] x, int64[1] a) => (float y) {y = Squeeze(x, a)}",
        "(float[1, 4] x) => (float y) <int64[1] a = {0}> {y = Squeeze(x, a)}",
    ),
    "TopK": (
        "(float[4] x) => (float y, int64 i) <int64[1] k = {2}> {y, i = TopK<sorted = 0>(x, k)}",
        "(float[4] x) => (float y, int64 i) <int64[1] k = {2}> {y, i = TopK(x, k)}",
    ),
    "Unsqueeze": (
        "(float[4] x, int64[1] a) => (float y) {y = Unsqueeze(x, a)}",
        "(float[4] x) => (float y) <int64[1] a = {0}> {y = Unsqueeze(x, a)}",
    ),
    "ReduceMean": (
        "(float[4] x, int64[1] a) => (float y) {y = ReduceMean(x, a)}",
        "(float[4] x) => (float y) <int64[1] a = {0}> {y = ReduceMean(x, a)}",
    ),
}
"""A node that breaks the note of its operator, and one that does not."""


@pytest.mark.parametrize("op_type", sorted(BROKEN))
def test_a_node_that_breaks_the_note_is_refused_and_one_that_keeps_it_is_not(op_type: str) -> None:
    opset = 23 if op_type == "Attention" else 20
    refused, taken = BROKEN[op_type]
    assert messages(taken, opset=opset) == []
    (message,) = messages(refused, opset=opset)
    assert message.endswith(f": TensorRT 11.4 has it only so: {operators()[op_type].note}")


def test_every_checked_note_has_its_examples_and_is_in_the_table() -> None:
    assert {op for op in BREAKS if not op.startswith("Reduce")} == set(BROKEN) - {"ReduceMean"}
    assert all(operators()[op].note for op in BREAKS)


def test_a_loop_whose_carried_value_changes_its_shape_is_refused() -> None:
    stack = """(float[8] x) => (float[N] y) <int64 trips = {3}> {
        y = Loop(trips, , x) <body = step (int64 i, bool go, float[8] a) => (bool on, float[16] b) {
            on = Identity(go)
            b = Concat<axis = 0>(a, a)}>}"""
    assert [message.split(" (")[0] for message in messages(stack)] == ["Loop"]


def test_the_table_is_of_operators_and_types_that_there_are() -> None:
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert set(operators()) <= names
    kinds = Counter(kind for operator in operators().values() for kind in operator.types)
    assert set(kinds) == {"FP32", "FP16", "BF16", "FP8", "FP4", "INT4", "INT8", "INT32", "INT64", "UINT8", "BOOL"}
    assert len(operators()) == 145


def test_no_mixer_op_is_called_like_an_operator_of_the_parser() -> None:
    """The parser takes a builtin of a node's name, whatever the node's domain is."""
    assert len({op.op_type for op in OPS} - set(operators())) == len(OPS) >= 4

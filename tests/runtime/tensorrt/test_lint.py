# SPDX-License-Identifier: Apache-2.0
"""Every known issue of TensorRT is found where it is, and not in other graphs or versions."""

from __future__ import annotations

from pathlib import Path

import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest

from metaformer_export.export.graph import SCOPES
from metaformer_export.export.ops.mixer_op import DOMAIN
from metaformer_export.runtime.tensorrt.known_issues import KNOWN_ISSUES, Version
from metaformer_export.runtime.tensorrt.lint import Finding, lint

BATCH = (1, 8, 16)
FOUR = "int8[2, 2, 1, 1] w = {1, 2, 3, 4}"

EXAMPLES: dict[str, tuple[str, str]] = {
    "dft": (
        "(float[1, 14, 8, 1] x) => (float[1, 14, 8, 2] y) {axis = Constant<value_int = -2>()\n y = DFT(x, , axis)}",
        "(float[1, 14, 8, 1] x) => (float[1, 14, 8, 1] y) {y = Relu(x)}",
    ),
    "dft-half": (
        "(float16[1, 8, 14, 1] x) => (float16[1, 8, 14, 2] y) {axis = Constant<value_int = -2>()\n y = DFT(x, , axis)}",
        "(float16[1, 14, 8, 1] x) => (float16[1, 14, 8, 2] y) {axis = Constant<value_int = -2>()\n y = DFT(x, , axis)}",
    ),
    "topk-3840": (
        "(float[1, 9216] x) => (float[1, 3841] y, int64[1, 3841] i) <int64[1] k = {3841}> {y, i = TopK(x, k)}",
        "(float[1, 9216] x) => (float[1, 3840] y, int64[1, 3840] i) <int64[1] k = {3840}> {y, i = TopK(x, k)}",
    ),
    "grouped-conv-fp16": (
        "(float16[1, 4, 8, 8] x, float16[4, 2, 3, 3] w) => (float16[1, 4, 6, 6] y) {y = Conv<group = 2>(x, w)}",
        "(float[1, 4, 8, 8] x, float[4, 2, 3, 3] w) => (float[1, 4, 6, 6] y) {y = Conv<group = 2>(x, w)}",
    ),
    "depthwise-conv-fp16": (
        "(float16[1, 4, 8, 8] x, float16[4, 1, 3, 3] w) => (float16[1, 4, 6, 6] y) {y = Conv<group = 4>(x, w)}",
        "(float16[1, 4, 8, 8] x, float16[4, 4, 3, 3] w) => (float16[1, 4, 6, 6] y) {y = Conv(x, w)}",
    ),
    "attention-of-transposed-input": (
        """(float16[2, 9, 5] q, float16[2, 9, 5] k, float16[2, 5, 9] v, float16 s) => (float16[2, 5, 9] y)
        {t = Transpose<perm = [0, 2, 1]>(q)
         a = MatMul(t, k)
         b = Mul(a, s)
         c = Softmax(b)
         y = MatMul(c, v)}""",
        """(float16[2, 8, 5] q, float16[2, 8, 5] k, float16[2, 5, 9] v, float16 s) => (float16[2, 5, 9] y)
        {t = Transpose<perm = [0, 2, 1]>(q)
         a = MatMul(t, k)
         b = Mul(a, s)
         c = Softmax(b)
         y = MatMul(c, v)}""",
    ),
    "residual-into-concat": (
        """(float16[1, 4, 8, 8] x, float16[2, 2, 1, 1] w) => (float16[1, 6, 8, 8] y)
        {a, b = Split<axis = 1, num_outputs = 2>(x)
         c = Conv(b, w)
         d = Sigmoid(c)
         e = Mul(c, d)
         f = Add(b, e)
         y = Concat<axis = 1>(a, b, f)}""",
        """(float16[1, 4, 8, 8] x, float16[2, 2, 1, 1] w) => (float16[1, 4, 8, 8] y)
        {a, b = Split<axis = 1, num_outputs = 2>(x)
         c = Conv(b, w)
         d = Sigmoid(c)
         e = Mul(c, d)
         f = Add(b, e)
         y = Concat<axis = 1>(a, f)}""",
    ),
    "aot-plugin-leak": (
        '(float[1, 2] x) => (float[1, 2] y) {y = metaformer.Op<plugin_namespace = "metaformer">(x)}',
        "(float[1, 2] x) => (float[1, 2] y) {y = metaformer.Op(x)}",
    ),
    "uint8": (
        """(uint8[1, 2] x) => (float[1, 1] y) <int64[1] start = {0}, int64[1] end = {1}>
        {a = Slice(x, start, end)
         y = Cast<to = 1>(x)}""",
        "(uint8[1, 2] x) => (uint8[1, 2] y) {a = Cast<to = 1>(x)\n b = Relu(a)\n y = Cast<to = 2>(b)}",
    ),
    "zero-point": (
        "(float[2] x) => (int8[2] y) <float s = {0.5}, int8 z = {1}> {y = QuantizeLinear(x, s, z)}",
        "(float[2] x) => (int8[2] y) <float s = {0.5}, int8 z = {0}> {y = QuantizeLinear(x, s, z)}",
    ),
    "int32-bias": (
        "() => (float[2] y) <int32[2] b = {3, 4}, float s = {0.5}> {y = DequantizeLinear(b, s)}",
        "() => (float[2] y) <int8[2] b = {3, 4}, float s = {0.5}> {y = DequantizeLinear(b, s)}",
    ),
    "weight-axis": (
        f"""(float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <{FOUR}, float[2] s = {{0.5, 0.25}}>
        {{d = DequantizeLinear<axis = 1>(w, s)
         y = Conv(x, d)}}""",
        f"""(float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <{FOUR}, float[2] s = {{0.5, 0.25}}>
        {{d = DequantizeLinear<axis = 0>(w, s)
         y = Conv(x, d)}}""",
    ),
}
"""A graph that has the issue, and one that just has it not."""
NODES = {
    "dft": "DFT",
    "dft-half": "DFT",
    "topk-3840": "TopK",
    "grouped-conv-fp16": "Conv",
    "depthwise-conv-fp16": "Conv",
    "attention-of-transposed-input": "Transpose",
    "residual-into-concat": "Conv",
    "aot-plugin-leak": "Op",
    "uint8": "Slice",
    "zero-point": "QuantizeLinear",
    "int32-bias": "DequantizeLinear",
    "weight-axis": "Conv",
}
"""The node that is named."""
INSIDE: dict[str, tuple[Version, ...]] = {
    "dft": ((10, 8), (11, 1), (11, 1, 0)),
    "dft-half": ((11, 2), (11, 2, 1), (11, 4)),
    "grouped-conv-fp16": ((11, 2), (11, 4)),
    "depthwise-conv-fp16": ((11, 2), (11, 4)),
    "attention-of-transposed-input": ((11, 2, 1), (11, 4)),
    "residual-into-concat": ((11, 2, 1), (11, 4)),
    "aot-plugin-leak": ((11, 1), (11, 4)),
}
"""Versions that have an issue; those that are not named here, all have."""
OUTSIDE: dict[str, tuple[Version, ...]] = {
    "dft": ((11, 2), (11, 2, 1), (11, 4)),
    "dft-half": ((11, 1), (10, 8)),
    "grouped-conv-fp16": ((10, 16, 1), (11, 1)),
    "depthwise-conv-fp16": ((10, 16, 1), (11, 1)),
    "attention-of-transposed-input": ((10, 16, 1), (11, 1)),
    "residual-into-concat": ((10, 16, 1), (11, 1)),
    "aot-plugin-leak": ((10, 14), (11, 0)),
}
KEYS = sorted(EXAMPLES)


def model(graph: str, opset: int = 20) -> ir.Model:
    """A model of a graph as text, with all types; its nodes have the names of their operators."""
    text = f'<ir_version: 10, opset_import: ["": {opset}, "{DOMAIN}": 1]> g {graph}'
    made = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True))
    for node in made.graph:
        node.name = node.op_type
        node.metadata_props[SCOPES] = f"['', 'stages.0.{node.op_type.lower()}', '{node.op_type}']"
    return made


def found(findings: tuple[Finding, ...]) -> list[tuple[str, str, str]]:
    return [(each.issue, each.severity, each.node) for each in findings]


def test_every_known_issue_has_its_examples() -> None:
    keys = [issue.key for issue in KNOWN_ISSUES]
    assert sorted(keys) == KEYS == sorted(NODES)
    ends = {issue.key for issue in KNOWN_ISSUES if issue.first or issue.fixed}
    assert ends == set(INSIDE) == set(OUTSIDE)


@pytest.mark.parametrize("key", KEYS)
def test_an_issue_is_found_in_the_versions_that_have_it(key: str) -> None:
    (issue,) = [issue for issue in KNOWN_ISSUES if issue.key == key]
    broken = model(EXAMPLES[key][0])
    for version in INSIDE.get(key, ((10, 8), (11, 2, 1), (11, 4))):
        assert (key, issue.severity, NODES[key]) in found(lint(broken, version, batch=BATCH)), version
        assert [each[0] for each in found(lint(broken, version, batch=BATCH))].count(key) == 1


@pytest.mark.parametrize("key", sorted(OUTSIDE))
def test_an_issue_is_not_found_in_other_versions(key: str) -> None:
    broken = model(EXAMPLES[key][0])
    for version in OUTSIDE[key]:
        assert key not in {each.issue for each in lint(broken, version, batch=BATCH)}, version


@pytest.mark.parametrize("key", KEYS)
def test_an_issue_is_not_found_in_a_graph_that_just_has_it_not(key: str) -> None:
    sound = model(EXAMPLES[key][1])
    for version in ((10, 8), (11, 1), (11, 2, 1), (11, 4)):
        assert key not in {each.issue for each in lint(sound, version, batch=BATCH)}, version


def test_a_finding_names_module_trouble_remedy_and_link_in_one_line() -> None:
    (finding,) = lint(model(EXAMPLES["topk-3840"][0]), (11, 4), batch=BATCH)
    assert finding == Finding(
        "topk-3840",
        "error",
        "TopK",
        "stages.0.topk",
        "TopK of stages.0.topk takes more than 3840 elements, at which TensorRT's TopK ends in every version. "
        "Export at a smaller --resolution, or without --int8 and with TensorRT 10.9 or later, whose engines hold the "
        "BalancedClustering plugin (up to 4096 tokens in a group). "
        "(https://github.com/NVIDIA/TensorRT/issues/4244)",
    )


def test_errors_come_first_and_then_the_order_of_the_graph() -> None:
    mixed = model(
        """(float16[1, 4, 8, 8] x, float16[4, 1, 1, 1] w, float16[4, 2, 1, 1] v, float16 s)
        => (float16[4096] y, int64[4096] i)
        <int64[1] k = {4096}, int64[1] flat = {-1}, int8 z = {1}>
        {a = Conv<group = 4>(x, w)
         b = Conv<group = 2>(a, v)
         q = QuantizeLinear(b, s, z)
         c = DequantizeLinear(q, s, z)
         d = Reshape(c, flat)
         y, i = TopK(d, k)}"""
    )
    assert found(lint(mixed, (11, 4), batch=BATCH)) == [
        ("zero-point", "error", "QuantizeLinear"),
        ("zero-point", "error", "DequantizeLinear"),
        ("topk-3840", "error", "TopK"),
        ("grouped-conv-fp16", "warning", "Conv"),
        ("depthwise-conv-fp16", "info", "Conv"),
    ]
    assert [each[0] for each in found(lint(mixed, (11, 0), batch=BATCH))] == ["zero-point", "zero-point", "topk-3840"]


def test_plugins_do_not_leak_where_the_batch_does_not_change() -> None:
    plugin = model(EXAMPLES["aot-plugin-leak"][0])
    assert lint(plugin, (11, 2), batch=(8, 8, 8)) == ()
    assert found(lint(plugin, (11, 2), batch=(1, 8, 8))) == [("aot-plugin-leak", "warning", "Op")]


def test_issues_in_the_graphs_of_a_node_are_found() -> None:
    branches = model(
        """(float[4096] x, bool c) => (float[4096] y) {
        y = If(c) <
            then_branch = one () => (float[4096] a) {n = Constant<value_ints = [4096]>() a, i = TopK(x, n)},
            else_branch = two () => (float[4096] b) {b = Identity(x)}>}"""
    )
    assert [each.issue for each in lint(branches, (10, 8), batch=BATCH)] == ["topk-3840"]


def test_a_transform_over_the_other_axis_has_the_other_length() -> None:
    """Opset 17 counts the axis from the front, 1 where it is not said."""
    transform = "(float16[1, 8, 14, 1] x) => (float16[1, 8, 14, 2] y) {y = DFT(x)}"
    assert lint(model(transform, opset=17), (11, 2), batch=BATCH) == ()
    assert [each.issue for each in lint(model(transform), (11, 2), batch=BATCH)] == ["dft-half"]


def test_every_known_issue_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    rows = [f"| [{issue.key}]({issue.link}) |" for issue in KNOWN_ISSUES]
    assert sum(row in text for row in rows) == len(rows) >= 12

# SPDX-License-Identifier: Apache-2.0
"""Clustering models are judged by their arithmetic and their decisions apart, and either can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import support
from torch import nn

from metaformer_export.artifacts import Lowered, ParityReport, Traced
from metaformer_export.calibration.images import ImageSet, load_images
from metaformer_export.export.graph import RESULT_OF, Builder, module_of
from metaformer_export.export.lower import lower
from metaformer_export.export.precision import convert
from metaformer_export.export.serialize import serialize
from metaformer_export.runtime import parity
from metaformer_export.runtime.clustering import (
    Clusterings,
    EagerDecisions,
    agreement,
    decisions,
    lent_agreement,
    undecided,
)
from metaformer_export.runtime.clustering_parity import LEAST, weigh
from metaformer_export.runtime.observe import rounded
from metaformer_export.runtime.onnxruntime import open_session

MODULES = [f"layers.{i}.blocks.1.attnC.clustering" for i in range(3)]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    whole = load_images(None, support.spec_for("boat_test"))
    return replace(whole, batch=whole.batch[:3], names=whole.names[:3], sha256=whole.sha256[:3])


@pytest.fixture(scope="module")
def eager(small_boat: nn.Module) -> EagerDecisions:
    return EagerDecisions(small_boat)


@pytest.fixture(params=["portable", "plugin"])
def lowered(request: pytest.FixtureRequest, traced_small_boat: Traced) -> Lowered:
    return lower(traced_small_boat, request.param)


def proof(
    model: ir.Model, eager: EagerDecisions, images: ImageSet, precision: str = "fp32", *, own: bool = True
) -> ParityReport:
    """The whole judgement of one graph, as an export makes it, with or without what its own clusters do."""
    candidates = {"file": lambda: open_session(serialize(model), threads=2)}
    free = parity.compare(eager.outputs, candidates, images, precision, ("logits",), classifier=True)  # type: ignore[arg-type]
    return weigh(free, eager, {"file": Clusterings(lambda: model, 2).open}, images, classifier=True, own=own)


def test_agreement_counts_tokens_in_the_same_cluster() -> None:
    order = np.arange(98)[None, None]
    swapped = order.copy()
    swapped[0, 0, [0, 97]] = 97, 0  # two tokens change sides
    shuffled = order.copy()
    shuffled[0, 0, :49] = order[0, 0, 48::-1]  # inside a cluster the order is free
    assert agreement(order, order).tolist() == [1.0]
    assert agreement(order, swapped).tolist() == [pytest.approx(96 / 98)]
    assert agreement(order, shuffled).tolist() == [1.0]
    assert lent_agreement(order, order).tolist() == [1.0]
    assert lent_agreement(order, shuffled).tolist() == [pytest.approx(20 / 40)]  # the first cluster lends others


def test_every_clustering_is_found_by_its_module(lowered: Lowered, eager: EagerDecisions, images: ImageSet) -> None:
    assert list(decisions(lowered.model.graph)) == MODULES
    _, orders = eager(images.batch)
    assert list(orders) == MODULES
    assert [order.shape for order in orders.values()] == [(3, 1, 3136), (3, 2, 784), (3, 4, 196)]


def test_a_graph_follows_the_clusters_it_is_given(lowered: Lowered, eager: EagerDecisions, images: ImageSet) -> None:
    want, orders = eager(images.batch)
    session, _ = Clusterings(lambda: lowered.model, 2).open()
    output, *own = session(images.batch, orders)
    assert support.relative_error(output, want[0]) <= 1e-5
    assert [order.shape for order in own] == [order.shape for order in orders.values()]
    (free,) = open_session(serialize(lowered.model), threads=2)(images.batch)
    alone, *made = session(images.batch, undecided(orders))
    assert support.relative_error(alone, free) <= 1e-6
    assert np.array_equal(made[0], own[0]), "nothing is given before the first"
    random = np.random.default_rng(0)
    other = {node: random.permuted(order, axis=-1) for node, order in orders.items()}
    assert support.relative_error(session(images.batch, other)[0], want[0]) > 0.01


def test_a_right_export_passes_on_its_arithmetic(lowered: Lowered, eager: EagerDecisions, images: ImageSet) -> None:
    report = proof(lowered.model, eager, images)
    assert report.passed, report.failures
    assert report.cluster_agreement is not None
    assert [node.module for node in report.cluster_agreement.nodes] == MODULES
    assert 0.9 < report.cluster_agreement.mean <= 1.0
    assert report.cluster_agreement.min <= report.cluster_agreement.mean
    assert report.same_clusters[0].max_rel <= 1e-5
    assert all(node.alone > 0.9 and node.lent > 0.8 for node in report.cluster_agreement.nodes)
    assert report.thresholds["clusters_alone"] == LEAST["fp32"].alone


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_clustering_that_sorts_the_wrong_way_fails_by_name(
    module: str, precision: str, traced_small_boat: Traced, eager: EagerDecisions, images: ImageSet
) -> None:
    lowered = lower(traced_small_boat, "portable")
    model = lowered.model if precision == "fp32" else rounded(convert(lowered, "fp16"))
    for node in model.graph:
        if node.op_type == "TopK" and module_of(node) == module:
            node.attributes["largest"] = ir.AttrInt64("largest", 1)
    report = proof(model, eager, images, precision)
    assert not report.passed
    assert report.cluster_agreement is not None
    wrong = {node.module: node.alone for node in report.cluster_agreement.nodes}
    assert wrong[module] < 0.3
    assert all(share > 0.6 for other, share in wrong.items() if other != module)
    assert report.same_clusters[0].max_rel <= (1e-5 if precision == "fp32" else 0.05), "its arithmetic is right"
    assert all(text.startswith(f"{module}: ") for text in report.failures)
    judged = proof(model, eager, images, precision, own=False)
    assert judged.failures == report.failures
    assert judged.same_clusters == report.same_clusters
    assert (judged.cluster_agreement, judged.changed_clusters) == (None, {})


def test_clusters_that_lend_the_wrong_tokens_fail(
    traced_small_boat: Traced, eager: EagerDecisions, images: ImageSet
) -> None:
    """Reversed inside every cluster: all tokens are where they belong, and others are lent."""
    model = lower(traced_small_boat, "portable").model
    for value in decisions(model.graph).values():
        within = np.arange(value.shape[2]).reshape(-1, 49)[:, ::-1].reshape(-1)
        build = Builder(next(use.node for use in value.uses()))
        uses = [(use.node, use.idx) for use in value.uses()]
        turned = build.value("Gather", [value, build.constant("within", within)], attributes={"axis": 2}, like=value)
        last = turned.producer()
        assert last is not None
        made = value.producer()
        assert made is not None
        last.metadata_props.update(made.metadata_props)
        del made.metadata_props[RESULT_OF]
        for node, index in uses:
            node.replace_input_with(index, turned)
    report = proof(model, eager, images)
    assert report.cluster_agreement is not None
    assert all(node.alone > 0.9 for node in report.cluster_agreement.nodes)
    assert all(node.lent < 0.2 for node in report.cluster_agreement.nodes)
    assert [text.split(":")[0] for text in report.failures] == MODULES


def test_wrong_arithmetic_fails_whatever_the_clusters(
    traced_small_boat: Traced, eager: EagerDecisions, images: ImageSet
) -> None:
    model = lower(traced_small_boat, "portable").model
    head = next(node for node in model.graph if node.op_type == "Gemm").inputs[1]
    assert head is not None
    assert head.const_value is not None
    head.const_value = ir.tensor(head.const_value.numpy() * np.float32(1.001), name=head.name)
    report = proof(model, eager, images)
    assert not report.passed
    assert all("with eager's clusters" in text for text in report.failures)
    assert report.same_clusters[0].max_rel > 1e-4


def test_float16_keeps_the_decisions_in_float32_and_says_what_they_cost(
    traced_small_boat: Traced, eager: EagerDecisions, images: ImageSet
) -> None:
    converted = convert(lower(traced_small_boat, "portable"), "fp16")
    graph = converted.model.graph
    sorts = [node for node in graph if node.op_type == "TopK"]
    assert len(sorts) == 6 + 4 + 2
    assert {node.inputs[0].dtype for node in sorts} == {ir.DataType.FLOAT}
    for value in decisions(graph).values():
        assert value.dtype == ir.DataType.INT64
    kept = {(layer.module, layer.reason) for layer in converted.kept}
    assert {("layers.0.blocks.1.attnC", "it makes the input of BalancedClustering")} <= kept
    report = proof(rounded(converted), eager, images, "fp16")
    assert report.passed, report.failures
    arithmetic, decided = report.same_clusters[0].rms_rel, report.changed_clusters["logits"]
    assert 1e-5 < arithmetic <= 0.01
    assert decided > 0
    assert report.outputs[0].rms_rel <= 2 * (arithmetic + decided)

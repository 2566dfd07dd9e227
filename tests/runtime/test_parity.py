# SPDX-License-Identifier: Apache-2.0
"""The judge itself: it must be able to say no."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import support
import torch
from small_models import KINDS
from torch import nn

from metaformer_export.artifacts import ParityReport
from metaformer_export.calibration.images import ImageSet, load_images
from metaformer_export.errors import ParityError
from metaformer_export.models.family import BuildOptions
from metaformer_export.runtime import parity as judging
from metaformer_export.runtime.parity import THRESHOLDS, compare, judge, measure

RANDOM = np.random.RandomState(0)
PROJECTION = RANDOM.standard_normal((40, 10)).astype(np.float32)
LOGITS = RANDOM.standard_normal((7, 10)).astype(np.float32)
IMAGES = ImageSet(RANDOM.standard_normal((7, 1, 2, 20)).astype(np.float32), tuple("abcdefg"), tuple("abcdefg"), "noise")


def rows(batch: np.ndarray) -> list[np.ndarray]:
    """A linear model of the pixels, so that order and batches matter."""
    return [batch.reshape(len(batch), -1) @ PROJECTION]


def run(candidate, images: ImageSet = IMAGES) -> ParityReport:
    return compare(rows, {"file": lambda: candidate}, images, "fp32", ("logits",), classifier=True)


def test_equal_outputs_pass_with_no_error() -> None:
    report = run(rows)
    assert report.passed
    assert (report.images, report.batches) == (7, (1, 3))
    assert (report.outputs[0].max_abs, report.outputs[0].top1_agreement) == (0.0, 1.0)
    assert report.outputs[0].cosine == pytest.approx(1.0)
    assert report.between == {}


def test_what_runs_beside_is_not_judged_but_held_against_the_others() -> None:
    def other(batch: np.ndarray) -> list[np.ndarray]:
        return [rows(batch)[0] + 0.5]

    report = compare(
        rows, {"file": lambda: rows}, IMAGES, "fp32", ("logits",), classifier=True, beside={"other": lambda: other}
    )
    assert report.passed
    assert report.methods == ("file",)
    spread = rows(IMAGES.batch)[0].std()
    assert report.between == {"file, other": pytest.approx(0.5 / spread, rel=0.1)}


def test_large_outputs_are_not_kept_to_be_held_against_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_KEPT_BYTES", 10)
    report = compare(rows, {"a": lambda: rows, "b": lambda: rows}, IMAGES, "fp32", ("logits",), classifier=True)
    assert (report.passed, report.methods, report.between) == (True, ("a", "b"), {})


def in_tf32(values: torch.Tensor) -> torch.Tensor:
    """To ten bits of mantissa, ties to even."""
    bits = values.detach().contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("kind", ["hornet_gf", "poolformer", "acmix_swin"])
def test_layers_that_multiply_in_tf32_are_within_its_limits_and_not_within_those_of_float32(kind: str) -> None:
    """So an engine of float32 layers that may do so is held to TF32's."""
    family, config = KINDS[kind]
    module = support.fill_golden(family.build(config, BuildOptions()))
    images = load_images(None, support.spec_for(kind))

    def eager(batch: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [module(torch.from_numpy(batch)).numpy()]

    def rounded(batch: np.ndarray) -> list[np.ndarray]:
        coarse = copy.deepcopy(module)
        for each in coarse.modules():
            if isinstance(each, nn.Conv2d | nn.Linear):
                each.weight.data = in_tf32(each.weight.data)
                each.register_forward_pre_hook(lambda _, given: tuple(map(in_tf32, given)))
        with torch.no_grad():
            return [coarse(torch.from_numpy(batch)).numpy()]

    verdicts = {
        arithmetic: compare(eager, {"tf32": lambda: rounded}, images, arithmetic, ("logits",), classifier=True)
        for arithmetic in ("fp32", "tf32")
    }
    assert {name: each.passed for name, each in verdicts.items()} == {"fp32": False, "tf32": True}
    assert verdicts["tf32"].outputs[0].rms_rel > 10 * THRESHOLDS["fp32"].rms_rel


def test_an_error_is_measured_as_it_is() -> None:
    got = measure("y", LOGITS, LOGITS + 0.25, classifier=True)
    spread = LOGITS.astype(np.float64).std()
    assert got.max_abs == pytest.approx(0.25, rel=1e-6)
    assert got.rms_rel == pytest.approx(0.25 / spread, rel=1e-6)
    assert got.top1_agreement == 1.0
    reversed_order = measure("y", LOGITS, -LOGITS, classifier=True)
    assert reversed_order.cosine == pytest.approx(-1.0)
    assert reversed_order.top1_agreement == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch: [rows(batch)[0] * 1.01],
        lambda batch: [rows(batch)[0][::-1]],  # right alone, wrong in a batch
        lambda batch: [np.repeat(rows(batch)[0][:1], len(batch), axis=0)],
        lambda batch: [np.full_like(rows(batch)[0], np.nan)],
    ],
    ids=["scaled", "reversed", "first-row-repeated", "nan"],
)
def test_a_wrong_candidate_fails(wrong) -> None:
    report = run(wrong)
    assert not report.passed
    assert report.failures[0].startswith("logits: max_rel")
    assert "(file, batch " in report.failures[0]


@pytest.mark.parametrize("wrong", [lambda b: [rows(b)[0][::-1]], lambda b: [np.repeat(rows(b)[0][:1], len(b), 0)]])
def test_one_image_is_enough_to_catch_rows_that_are_mixed_up(wrong) -> None:
    one = ImageSet(IMAGES.batch[:1], IMAGES.names[:1], IMAGES.sha256[:1], "one")
    assert run(rows, one).passed
    assert not run(wrong, one).passed


def test_outputs_of_another_shape_are_an_error() -> None:
    with pytest.raises(ParityError, match="output logits has shape"):
        run(lambda batch: [rows(batch)[0][:, :1]])


def test_every_threshold_can_fail_by_itself() -> None:
    good = measure("y", LOGITS, LOGITS, classifier=True)
    for precision, limits in THRESHOLDS.items():
        assert judge(good, limits) == [], precision
        for key, bad in {"max_rel": 2.0, "rms_rel": 1.0, "cosine": 0.9, "top1_agreement": 0.4}.items():
            assert len(judge(replace(good, **{key: bad}), limits)) == 1

# SPDX-License-Identifier: Apache-2.0
"""The two tiny HorNets whole, with golden weights, from eager to the files that are delivered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import support
from torch import nn

from metaformer_export.artifacts import Converted, Lowered
from metaformer_export.calibration.images import load_images
from metaformer_export.export.lower import check, lower
from metaformer_export.export.precision import convert, out_of_range
from metaformer_export.export.serialize import serialize
from metaformer_export.export.trace import trace
from metaformer_export.models.loading import load_model
from metaformer_export.runtime import eager
from metaformer_export.runtime.observe import largest_magnitudes, rounded
from metaformer_export.runtime.onnxruntime import Session, open_session
from metaformer_export.runtime.parity import compare


@dataclass(frozen=True)
class Case:
    """One model and its portable form."""

    module: nn.Module
    lowered: Lowered
    session: Session


@pytest.fixture(scope="module", params=["hornet_t", "hornet_t_gf"])
def case(request: pytest.FixtureRequest) -> Case:
    loaded = load_model(request.param)
    loaded.module.load_state_dict(support.golden_state_dict(loaded.spec.name))
    lowered = lower(trace(loaded.module, loaded.spec), "portable")
    return Case(loaded.module, lowered, session_of(lowered))


def session_of(each: Lowered | Converted) -> Session:
    return open_session(serialize(each.model), threads=2)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_the_portable_file_agrees_with_eager_at_every_batch(case: Case, batch: int) -> None:
    x = support.image(batch, 3, 224, 224)
    assert support.relative_error(case.session(x)[0], eager.run(case.module, x)[0]) <= 1e-4


def test_a_row_of_a_batch_is_the_image_alone(case: Case) -> None:
    x = support.image(5, 3, 224, 224)
    (together,) = case.session(x)
    alone = np.concatenate([case.session(row[None])[0] for row in x])
    assert np.abs(together - alone).max() / alone.std() <= 1e-5


def test_the_file_is_valid_and_of_standard_operators(case: Case) -> None:
    check(ir.to_proto(case.lowered.model))
    kinds = {(node.domain, node.op_type) for node in case.lowered.model.graph}
    assert {domain for domain, _ in kinds} == {""}
    assert not {"Identity", "Sqrt", "Pow", "DFT", "Constant"} & {op for _, op in kinds}


@pytest.mark.parametrize("case", [pytest.param("hornet_t", marks=pytest.mark.slow), "hornet_t_gf"], indirect=True)
def test_the_float16_file_agrees_on_the_photographs(case: Case) -> None:
    images = load_images(None, case.lowered.spec)
    peaks = largest_magnitudes(case.lowered, images.batch[:2], threads=2)
    assert out_of_range(case.lowered, peaks) == ()
    converted = convert(case.lowered, "fp16", max_abs=peaks)
    check(ir.to_proto(converted.model))
    report = compare(
        lambda batch: eager.run(case.module, batch),
        {
            "file": lambda: session_of(converted),
            "rounded": lambda: open_session(serialize(rounded(converted)), threads=2),
        },
        images,
        "fp16",
        ("logits",),
        classifier=True,
    )
    (output,) = report.outputs
    assert output.cosine >= 0.9999
    assert output.rms_rel <= 0.01
    assert output.top1_agreement == 1.0
    assert report.passed

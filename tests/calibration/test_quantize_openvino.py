# SPDX-License-Identifier: Apache-2.0
"""What is quantised for OpenVINO, of every family: OpenVINO computes in eight bits what the graph says."""

from __future__ import annotations

import numpy as np
import pytest
import support
from small_models import small

from metaformer_export.calibration.quantize import observed, quantize
from metaformer_export.export.graph import constant, producer
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import serialize
from metaformer_export.quantizing import INT8_FORM
from metaformer_export.runtime import onnxruntime, openvino
from metaformer_export.runtime.ranges import extremes
from metaformer_export.runtime.saturation import weight_bits

CLUSTERS = ("boat_swin", "boat_cswin")


@pytest.mark.parametrize(
    ("kind", "offsets"),
    [
        ("poolformer", 0),
        ("caformer", 15),  # its linear layers have none but what they take from norms
        ("hornet", 0),
        ("hornet_gf", 0),
        ("focalnet", 0),
        ("acmix_swin", 3),  # of patch merging
        ("acmix_resnet", 0),
        ("boat_swin", 3),
        ("boat_cswin", 0),
    ],
)
def test_openvino_computes_in_eight_bits_what_the_graph_says(kind: str, offsets: int) -> None:
    lowered = lower(small(kind).traced, INT8_FORM["openvino"])
    images = support.image(2, 3, *lowered.spec.image_size)
    seen = extremes(lowered.model, observed(lowered), lambda: [images], threads=2)
    ranges = {name: (each.low, each.high) for name, each in seen.items()}
    model = quantize(lowered, ranges, "openvino", weight_bits=weight_bits()).model
    eight_bits = [
        node for node in model.graph if node.op_type == "Conv" and producer(node.inputs[1], "DequantizeLinear")
    ]
    assert len(eight_bits) >= 10
    assert all(len(node.inputs) == 3 for node in eight_bits), "OpenVINO multiplies by scales twice otherwise"
    assert sum(bool((constant(node.inputs[2]) == np.float32(1e-30)).all()) for node in eight_bits) == offsets

    file = serialize(model)
    (want,) = support.run_model(lowered.model, images)
    (literal,) = onnxruntime.open_session(file, threads=2, literal=True)(images)
    limit = 0.5 if kind in CLUSTERS else 0.2  # whose decisions change with the streams that they are made from
    assert 1e-4 < rms(literal, want) < limit
    for batch in (None, 1):
        session = openvino.open_session(file, threads=2, batch=batch)
        assert session.executed["u8"] >= len(eight_bits)
        (got,) = session(images)
        assert rms(got, want) < limit
        if kind not in CLUSTERS:
            assert rms(got, literal) < rms(literal, want)


def rms(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(((got - want) ** 2).mean()) / want.std())

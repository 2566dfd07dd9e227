# SPDX-License-Identifier: Apache-2.0
"""Norms without means: which residual streams can do without, and that the numbers stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import small_models
import support
from torch import Tensor, nn

from metaformer_export.artifacts import Traced
from metaformer_export.export.passes.base import Pass, run_pass
from metaformer_export.export.passes.centre_residuals import CentreResiduals
from metaformer_export.export.passes.fold_scales import FoldScales
from metaformer_export.export.passes.residuals_to_channels_first import ResidualsToChannelsFirst
from metaformer_export.export.passes.write_out_layer_norm import WriteOutLayerNorm
from metaformer_export.export.trace import trace
from metaformer_export.models.norms import ChannelLayerNorm
from metaformer_export.runtime import eager


class Stream(nn.Module):
    """A stem, three blocks x + layer(norm(x)) on maps, and what reads the stream in the end."""

    def __init__(self, *, groups: tuple[int, ...] = (1, 1, 1), ending: str = "norm", scale: float = 1.0) -> None:
        super().__init__()
        self.ending, self.scale = ending, scale
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.norms = nn.ModuleList(ChannelLayerNorm(16) for _ in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, groups=each) for each in groups)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x * self.scale + layer(norm(x)) if self.scale != 1 else x + layer(norm(x))
        if self.ending == "norm":
            x = self.norms[-1](x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def traced(module: nn.Module, size: tuple[int, int] = (32, 48)) -> tuple[Traced, np.ndarray, np.ndarray]:
    module = support.fill_golden(module)
    x = support.image(2, 3, *size)
    return trace(module, support.spec_for("stream", size)), x, eager.run(module, x)[0]


def small(kind: str) -> tuple[Traced, np.ndarray, np.ndarray]:
    found = small_models.small(kind)
    x = support.image(2, 3, *found.traced.spec.image_size)
    return found.traced, x, eager.run(found.module, x)[0]


def after(start: Traced, *passes: Pass) -> tuple[ir.Model, list[int], Counter[str]]:
    model = start.model.clone()
    rewrites = [run_pass(each, model).rewrites for each in passes]
    return model, rewrites, Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    ("module", "norms", "means"),
    [
        (Stream(), 4, 0),
        (Stream(groups=(1, 4, 1)), 4, 1),  # a grouped convolution cannot leave out a mean over all its outputs
        (Stream(groups=(4, 4, 4)), 0, 4),  # three means for four norms: not worth it, all keep their own
        (Stream(ending="mean"), 0, 3),  # the head sees the mean
        (Stream(scale=0.5), 0, 4),  # as would a scaled stream, which a sum after it could not tell
    ],
)
def test_a_stream_is_centred_where_only_norms_read_it(module: Stream, norms: int, means: int) -> None:
    start, x, want = traced(module)
    assert want.std() > 0.05
    model, (rewrites,), ops = after(start, CentreResiduals())
    assert rewrites == norms
    assert (ops["ReduceL2"], ops["Sub"]) == (norms, means)
    assert support.relative_error(support.run_model(model, x)[0], want) <= 1e-5


def test_the_stream_itself_is_not_an_output_that_changes() -> None:
    class Features(Stream):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for norm, layer in zip(self.norms, self.layers, strict=False):
                x = x + layer(norm(x))
            return x

    start, x, want = traced(Features())
    model, (rewrites,), _ = after(start, CentreResiduals())
    assert rewrites == 0
    assert support.relative_error(support.run_model(model, x)[0], want) <= 1e-5


def test_every_norm_of_hornet_loses_its_mean_and_its_transposes() -> None:
    start, x, want = small("hornet")
    before = Counter(node.op_type for node in start.model.graph)
    model, (_, rewrites), ops = after(start, FoldScales(), CentreResiduals())
    # One Sub in each norm that is written out; the stem's norm reads no stream and stays.
    assert rewrites == before["LayerNormalization"] + before["Sub"] - 1
    assert (ops["LayerNormalization"], ops["ReduceL2"]) == (0, rewrites - 1)  # the last reads (B, C): by Pow
    assert ops["Sub"] == 2  # the stem's, and one where the first stream starts with its result
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


def test_only_streams_that_norms_alone_read_are_turned() -> None:
    start, x, want = small("caformer")
    model, (_, turned, rewrites), _ = after(
        start, FoldScales(), ResidualsToChannelsFirst(norms_only=True), CentreResiduals()
    )
    all_of_them = after(start, FoldScales(), ResidualsToChannelsFirst())[1][1]
    assert 0 < turned < all_of_them  # the later stages scale their stream
    assert rewrites > turned  # two norms for two sums of a block, and the norm behind the stage
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


@pytest.mark.parametrize("kind", ["focalnet", "acmix_swin", "caformer"])
def test_layer_norms_are_written_out(kind: str) -> None:
    start, x, want = small(kind)
    before = Counter(node.op_type for node in start.model.graph)["LayerNormalization"]
    model, (rewrites,), ops = after(start, WriteOutLayerNorm())
    assert rewrites == before > 5
    assert ops["LayerNormalization"] == 0
    assert support.relative_error(support.run_model(model, x)[0], want) <= 2e-5


def test_a_centred_stream_has_no_mean() -> None:
    start, x, _ = traced(Stream(groups=(1, 4, 1)))
    model, _, _ = after(start, CentreResiduals())
    stream = next(node.inputs[0] for node in model.graph if node.op_type == "ReduceL2")
    assert stream is not None
    model.graph.outputs[:] = [stream]
    (maps,) = support.run_model(model, x)
    assert np.abs(maps.mean(1)).max() <= 1e-5 * maps.std()
    assert maps.shape[1] == 16

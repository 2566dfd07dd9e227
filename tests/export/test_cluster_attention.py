# SPDX-License-Identifier: Apache-2.0
"""metaformer::ClusterAttention: every form computes what the float64 reference computes."""

from __future__ import annotations

import numpy as np
import pytest
import support
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer_export.export.ops.cluster_attention import OP
from metaformer_export.export.ops.cluster_attention.op import reference
from metaformer_export.export.passes.attach_plugin import AttachPlugin
from metaformer_export.export.passes.base import Pass
from metaformer_export.export.passes.expand_mixer_ops import ExpandMixerOps
from metaformer_export.models.mixers.feature_space_attention import cluster_attention

FORMS = pytest.mark.parametrize("form", [ExpandMixerOps(), AttachPlugin()], ids=["portable", "function"])
SCALE = 0.7
"""Not a power of two, and large enough that softmax is far from uniform."""


def case(length: int, seed: int, batch: int = 2, heads: int = 2, dim: int = 8) -> tuple[np.ndarray, ...]:
    random = np.random.RandomState(seed)
    q, k, v = random.standard_normal((3, batch, heads, length, dim)).astype(np.float32)
    order = np.argsort(random.standard_normal((batch, heads, length)), -1)
    return q, k, v, order


def run(form: Pass, inputs: tuple[np.ndarray, ...], cluster: int = 49, overlap: int = 20) -> np.ndarray:
    attributes = {"cluster_size": cluster, "overlap": overlap, "scale": SCALE}
    return support.run_form(form, OP, inputs, attributes, inputs[0])


@FORMS
@given(length=st.sampled_from([49, 98, 196, 784]), seed=st.integers(0, 10**6), batch=st.integers(1, 3))
def test_every_form_matches_the_reference(form: Pass, length: int, seed: int, batch: int) -> None:
    inputs = case(length, seed, batch)
    assert np.abs(run(form, inputs) - reference(*inputs, 49, 20, SCALE)).max() <= 1e-5


@FORMS
@given(cluster=st.integers(1, 9), pairs=st.integers(0, 3), data=st.data())
def test_any_cluster_and_overlap(form: Pass, cluster: int, pairs: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, cluster))
    inputs = case(cluster * max(2 * pairs, 1), seed=cluster)
    assert np.abs(run(form, inputs, cluster, overlap) - reference(*inputs, cluster, overlap, SCALE)).max() <= 1e-5


@given(length=st.sampled_from([49, 98, 196]), seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_eager_matches_the_reference(length: int, seed: int) -> None:
    q, k, v, order = case(length, seed)
    got = cluster_attention(*(torch.from_numpy(x).double() for x in (q, k, v)), torch.from_numpy(order), 49, 20, SCALE)
    assert np.abs(got.numpy() - reference(q, k, v, order, 49, 20, SCALE)).max() <= 1e-12


@FORMS
def test_the_longest_sequence(form: Pass) -> None:
    inputs = case(3136, 0, batch=1)
    assert np.abs(run(form, inputs) - reference(*inputs, 49, 20, SCALE)).max() <= 1e-5


def test_the_clusters_of_a_split_see_20_tokens_of_each_other() -> None:
    """A value that only one token has reaches exactly the queries that see that token."""
    q, k, v, _ = case(196, 0, batch=1, heads=1)
    order = np.arange(196)[None, None]
    for token, seen in (
        (0, range(49)),
        (29, range(98)),
        (48, range(98)),
        (49, range(98)),
        (69, range(49, 98)),
        (98, range(98, 147)),
        (127, range(98, 196)),
    ):
        v[:] = 0
        v[0, 0, token] = 1
        got = run(ExpandMixerOps(), (q, k, v, order))[0, 0, :, 0]
        assert np.flatnonzero(got).tolist() == list(seen)

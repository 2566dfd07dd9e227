# SPDX-License-Identifier: Apache-2.0
"""metaformer::BalancedClustering: every form decides as the float64 reference decides."""

from __future__ import annotations

import numpy as np
import pytest
import support
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer_export.export.ops.balanced_clustering import OP
from metaformer_export.export.ops.balanced_clustering.op import reference
from metaformer_export.export.passes.attach_plugin import AttachPlugin
from metaformer_export.export.passes.base import Pass
from metaformer_export.export.passes.expand_mixer_ops import ExpandMixerOps
from metaformer_export.models.mixers.feature_space_attention import balanced_clustering, levels_of

LENGTHS = st.sampled_from([49, 98, 196, 784])
FORMS = pytest.mark.parametrize("form", [ExpandMixerOps(), AttachPlugin()], ids=["portable", "function"])


def tokens(length: int, seed: int, batch: int = 2, heads: int = 2, dim: int = 8) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((batch, heads, length, dim))


def run(form: Pass, q: np.ndarray, cluster: int = 49) -> np.ndarray:
    levels = (q.shape[2] // cluster).bit_length() - 1
    order = np.zeros(q.shape[:3], np.int64)
    return support.run_form(form, OP, [q], {"cluster_size": cluster, "levels": levels}, order)


def same_cluster(one: np.ndarray, other: np.ndarray) -> float:
    """Share of tokens that both orders put into the same cluster of 49."""
    of = [np.argsort(order, -1) // 49 for order in (one, other)]
    return float((of[0] == of[1]).mean())


@given(length=LENGTHS, seed=st.integers(0, 10**6), batch=st.integers(1, 3), heads=st.integers(1, 3))
def test_portable_in_float64_is_the_reference(length: int, seed: int, batch: int, heads: int) -> None:
    q = tokens(length, seed, batch, heads)
    assert np.array_equal(run(ExpandMixerOps(), q), reference(q, levels_of(length)))


@given(length=LENGTHS, seed=st.integers(0, 10**6), batch=st.integers(1, 3))
def test_eager_in_float64_is_the_reference(length: int, seed: int, batch: int) -> None:
    q = tokens(length, seed, batch)
    got = balanced_clustering(torch.from_numpy(q), levels_of(length)).numpy()
    assert np.array_equal(got, reference(q, levels_of(length)))


@FORMS
@given(length=LENGTHS, seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_float32_changes_few_decisions(form: Pass, length: int, seed: int) -> None:
    q = tokens(length, seed)
    got = run(form, q.astype(np.float32))
    assert np.array_equal(np.sort(got, -1), np.broadcast_to(np.arange(length), got.shape))
    assert same_cluster(got, reference(q, levels_of(length))) >= 0.95


@FORMS
def test_the_longest_sequence(form: Pass) -> None:
    q = tokens(3136, 0, batch=1)
    assert same_cluster(run(form, q.astype(np.float32)), reference(q, 6)) >= 0.95
    if isinstance(form, ExpandMixerOps):
        assert np.array_equal(run(form, q), reference(q, 6))


@FORMS
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
@pytest.mark.parametrize("length", [49, 98, 784])
def test_constant_tokens_keep_the_order_of_the_image(form: Pass, value: float, length: int) -> None:
    q = np.full((2, 2, length, 8), value, np.float32)
    want = np.broadcast_to(np.arange(length), (2, 2, length))
    assert np.array_equal(reference(q, levels_of(length)), want)
    assert np.array_equal(run(form, q), want)
    assert np.array_equal(balanced_clustering(torch.from_numpy(q), levels_of(length)).numpy(), want)


@FORMS
@given(seed=st.integers(0, 10**6), kinds=st.integers(2, 4))
def test_of_equal_tokens_the_lower_index_comes_first(form: Pass, seed: int, kinds: int) -> None:
    """Few distinct tokens, so that most ratios tie, in one level: the runs of one kind are sorted."""
    random = np.random.RandomState(seed)
    kind = random.randint(kinds, size=98)
    q = random.standard_normal((kinds, 8))[kind].astype(np.float32)[None, None]
    for order in (run(form, q), balanced_clustering(torch.from_numpy(q), 1).numpy(), reference(q, 1)):
        for each in range(kinds):
            indices = order[0, 0][kind[order[0, 0]] == each]
            assert np.array_equal(indices, np.sort(indices))
            assert len(indices) == (kind == each).sum()


@FORMS
@given(seed=st.integers(0, 10**6))
def test_no_image_sees_another(form: Pass, seed: int) -> None:
    q = tokens(196, seed, batch=3).astype(np.float32)
    whole = run(form, q)
    assert all(np.array_equal(run(form, q[i : i + 1]), whole[i : i + 1]) for i in range(3))


@pytest.mark.parametrize("length", [0, 48, 50, 147, 3135])
def test_lengths_that_do_not_halve_into_clusters_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=rf"49 \* 2\^k tokens, got {length}"):
        levels_of(length)

# SPDX-License-Identifier: Apache-2.0
"""BalancedClustering's GPU kernel, in Triton's interpreter and as PTX."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import DTYPES, interpret
from numpy.typing import NDArray

from metaformer_export.export.ops.balanced_clustering.op import _ratio, reference
from metaformer_export.export.ops.balanced_clustering.plugin import KERNEL
from metaformer_export.export.ops.compiling import ARCHITECTURES, compile_kernel, resources

LENGTHS = [98, 196, 392, 784, 1568, 3136]
ROUNDING = 2.0**-23
"""Of float32, at 1."""
APART = 16 * ROUNDING
"""Ratios that differ by as much, relatively, must be told apart."""
FAMILIES = [(3136, 32, 3), (784, 24, 6), (196, 32, 12)]


def levels_of(tokens: int, cluster_size: int = 49) -> int:
    return (tokens // cluster_size).bit_length() - 1


def clustered(q: torch.Tensor, levels: int) -> NDArray[np.int64]:
    attributes = {"cluster_size": q.shape[2] >> levels, "levels": levels}
    return interpret(KERNEL, (q,), attributes).numpy()


def arc(tokens: int, dim: int = 32, degrees: int = 240) -> NDArray[np.float64]:
    """Directions in one plane, evenly over an arc, out of order, at random lengths.

    A wider arc may have tokens as far to the left of both centroids as others are to their right; in a narrower one,
    or in no order at all, the centroids of small groups come too close to each other for float32.
    """
    random = np.random.RandomState(tokens)
    angle = np.argsort(np.arange(tokens) + random.normal(0, tokens / 5, tokens)) * (np.deg2rad(degrees) / tokens)
    plane = np.linalg.qr(random.standard_normal((dim, 2)))[0].T
    lengths = random.uniform(0.5, 2.0, (tokens, 1))
    return (lengths * (np.stack([np.cos(angle), np.sin(angle)], -1) @ plane))[None, None]


def of_codebook(tokens: int, dim: int = 32, words: int = 11) -> NDArray[np.float64]:
    """Every token is one of a few vectors, zero among them, so that most ratios tie."""
    random = np.random.RandomState(tokens + 1)
    book = np.vstack([random.standard_normal((words, dim)), np.zeros(dim)])
    return book[random.randint(words + 1, size=tokens)][None, None]


def groups_of(tokens: NDArray[np.float64], levels: int) -> list[NDArray[np.int64]]:
    """Of one head, every group that a level sorts: (groups of all levels,) of the indices in their order."""
    orders = [reference(tokens[None, None], level)[0, 0].reshape(2**level, -1) for level in range(levels)]
    return [group for order in orders for group in order]


def smallest_difference(q: NDArray[np.floating], levels: int) -> float:
    """Between ratios of a group that are not equal, in all groups and levels, over the larger of both."""
    heads = q.astype(np.float64).reshape(-1, *q.shape[2:])
    ratios = [np.unique(_ratio(head[group])) for head in heads for group in groups_of(head, levels)]
    return min(float((np.diff(each) / each[1:]).min()) for each in ratios if len(each) > 1)


def same_cluster(one: NDArray[np.int64], other: NDArray[np.int64], size: int = 49) -> float:
    """Share of tokens that both orders put into the same cluster."""
    of = [np.argsort(order, -1) // size for order in (one, other)]
    return float((of[0] == of[1]).mean())


def is_permutation(order: NDArray[np.int64]) -> bool:
    return np.array_equal(np.sort(order, -1), np.broadcast_to(np.arange(order.shape[-1]), order.shape))


@pytest.mark.parametrize("tokens", [*LENGTHS[:-1], pytest.param(LENGTHS[-1], marks=pytest.mark.slow)])
def test_tokens_on_an_arc_are_ordered_as_in_float64(tokens: int) -> None:
    q = arc(tokens, degrees=290 if tokens == 3136 else 240).astype(np.float32)
    levels = levels_of(tokens)
    assert smallest_difference(q, levels) > APART
    assert np.array_equal(clustered(torch.from_numpy(q), levels), reference(q, levels))


@pytest.mark.parametrize("tokens", LENGTHS)
def test_equal_tokens_keep_their_order_as_in_float64(tokens: int) -> None:
    q = of_codebook(tokens).astype(np.float32)
    levels = levels_of(tokens)
    assert smallest_difference(q, levels) > APART
    assert np.array_equal(clustered(torch.from_numpy(q), levels), reference(q, levels))


@pytest.mark.parametrize(("tokens", "dim"), [(196, 24), (784, 32)])
def test_float32_changes_few_decisions_on_random_tokens(tokens: int, dim: int) -> None:
    q = np.random.RandomState(tokens).standard_normal((1, 2, tokens, dim)).astype(np.float32)
    got = clustered(torch.from_numpy(q), levels_of(tokens))
    assert is_permutation(got)
    assert same_cluster(got, reference(q, levels_of(tokens))) >= 0.95


@pytest.mark.parametrize(("tokens", "value"), [(49, 1.0), (98, 0.0), (98, 1.0), (98, -3.5), (784, -3.5)])
def test_constant_tokens_keep_the_order_of_the_image(tokens: int, value: float) -> None:
    got = clustered(torch.full((1, 2, tokens, 32), value), levels_of(tokens))
    assert np.array_equal(got, np.broadcast_to(np.arange(tokens), (1, 2, tokens)))


def test_equal_ratios_keep_the_order_of_the_level_before() -> None:
    """Of the tokens that the first level puts last, the halves have the same mean, so that nothing sorts them again."""
    near, far = [[3, 1, 0, 0], [3, -1, 0, 0]], [[3, 0, 2, 0], [3, 0, -2, 0]]
    q = np.array([near[0], far[0], near[1], far[1]] * 4 + [[0, 0, 0, 1]] * 16, np.float32)[None, None]
    got = clustered(torch.from_numpy(q), 2)
    assert np.array_equal(got, reference(q, 2))
    assert got[0, 0, 16:].tolist() == [*range(1, 16, 2), *range(0, 16, 2)]


def test_a_token_opposite_to_both_centroids_comes_first() -> None:
    q = np.zeros((1, 1, 98, 32), np.float32)
    q[..., 0] = 2.0
    q[..., 77, 0] = -2.0
    got = clustered(torch.from_numpy(q), 1)
    assert np.array_equal(got, reference(q, 1))
    assert got[0, 0, 0] == 77


@pytest.mark.parametrize("exponent", [-36, 40])
def test_length_decides_nothing(exponent: int) -> None:
    q = np.random.RandomState(2).standard_normal((1, 1, 196, 24)).astype(np.float32)
    scaled = q * np.float32(2.0**exponent)
    assert np.array_equal(clustered(torch.from_numpy(scaled), 2), reference(q, 2))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("make", [arc, of_codebook])
def test_rounded_tokens_are_ordered_as_in_float64(make: type, dtype: str) -> None:
    q = torch.from_numpy(make(98, 24)).to(DTYPES[dtype])
    exact = q.double().numpy()
    assert smallest_difference(exact, 1) > APART
    assert np.array_equal(clustered(q, 1), reference(exact, 1))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("tokens", "dim"), [(784, 32), (196, 16)])
def test_16_bit_tokens_are_clustered_in_float32(dtype: str, tokens: int, dim: int) -> None:
    random = np.random.RandomState(dim)
    q = torch.from_numpy(random.standard_normal((1, 1, tokens, dim))).to(DTYPES[dtype])
    got, want = clustered(q, levels_of(tokens)), reference(q.double().numpy(), levels_of(tokens))
    assert is_permutation(got)
    assert same_cluster(got, want) >= 0.95


@pytest.mark.slow
@given(
    cluster_size=st.integers(4, 49),
    levels=st.integers(0, 3),
    heads=st.integers(1, 3),
    dim=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=8)
def test_every_level_sorts_every_group_by_its_ratio(
    cluster_size: int, levels: int, heads: int, dim: int, seed: int
) -> None:
    """The order of l levels, seen from the kernel's own order of l - 1: no decision can hide behind an earlier one."""
    tokens = cluster_size << levels
    q = np.random.RandomState(seed).standard_normal((1, heads, tokens, dim)).astype(np.float32)
    if dim == 1:  # a token that is opposite to both centroids has no ratio but rounding
        q = np.abs(q)
    orders = [clustered(torch.from_numpy(q), level) for level in range(levels + 1)]
    assert np.array_equal(orders[0], np.broadcast_to(np.arange(tokens), orders[0].shape))
    for level in range(levels):
        before, after = (order.reshape(-1, 2**level, tokens >> level) for order in orders[level : level + 2])
        assert np.array_equal(np.sort(before, -1), np.sort(after, -1))
        for head, parts, sorted_parts in zip(q.reshape(-1, tokens, dim), before, after, strict=True):
            for part, sorted_part in zip(parts, sorted_parts, strict=True):
                ratio = dict(zip(part, _ratio(head[part].astype(np.float64)), strict=True))
                ratios = np.array([ratio[token] for token in sorted_part])
                # the share of the first cosine, which is between 0 and 1, has the same order and an absolute error
                assert np.diff(ratios / (1 + ratios)).min() > -1e-4


def test_no_image_sees_another() -> None:
    q = torch.from_numpy(np.random.RandomState(0).standard_normal((3, 2, 98, 24)).astype(np.float32))
    whole = clustered(q, 1)
    alone = [clustered(each[None].contiguous(), 1)[0] for each in q]
    assert np.array_equal(whole, np.stack(alone))
    assert len({tuple(order) for order in whole.reshape(-1, 98)}) == 6


def test_what_is_no_number_still_gives_an_order() -> None:
    """TensorRT times kernels on arbitrary data, and what follows reads where the order says."""
    random = np.random.RandomState(0)
    q = random.standard_normal((1, 1, 196, 32)).astype(np.float32)
    q[..., random.randint(196, size=20), :] = np.array([[np.nan], [np.inf], [-np.inf], [3e38]])[
        random.randint(4, size=20)
    ]
    with np.errstate(all="ignore"):
        assert is_permutation(clustered(torch.from_numpy(q), 2))


def test_heads_that_do_not_fit_are_refused() -> None:
    assert "at most 4096 tokens and 128 channels, got 6272 and 32" in refusal(6272, 32)
    assert "got 98 and 129" in refusal(98, 129)
    assert "splits 49 * 2^2 tokens, got 98" in KERNEL.refusal({"q": (1, 1, 98, 8)}, {"cluster_size": 49, "levels": 2})
    assert refusal(4096, 128, 32) == ""


def refusal(tokens: int, dim: int, cluster_size: int = 49) -> str:
    attributes = {"cluster_size": cluster_size, "levels": levels_of(tokens, cluster_size)}
    return KERNEL.refusal({"q": (1, 1, tokens, dim)}, attributes)


def test_the_order_has_a_number_for_every_token() -> None:
    assert KERNEL.output_shape({"q": ("batch", 3, 98, 32)}, {"cluster_size": 49, "levels": 1}) == ("batch", 3, 98)


def compiles(tokens: int, dim: int, heads: int, dtype: str, architecture: int) -> None:
    attributes = {"cluster_size": 49, "levels": levels_of(tokens)}
    compiled, launch = compile_kernel(KERNEL, {"q": (None, heads, tokens, dim)}, attributes, dtype, architecture)
    assert compiled.parameters == ("u64", "u32", "u64")
    assert launch.programs == (heads, 1)
    assert compiled.shared_memory <= 75 * 1024
    used = resources(compiled)
    # invariants that are stored once; a program of 16 warps has 128 registers a thread
    assert max(used.spill_stores, used.spill_loads) <= (192 if launch.warps == 16 else 0)
    assert used.registers * compiled.threads <= 64 * 1024


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_compiles_without_a_gpu(dtype: str, architecture: int) -> None:
    compiles(98, 24, 2, dtype, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "dim", "heads"), FAMILIES)
def test_kernel_compiles_at_the_sizes_of_the_families(
    tokens: int, dim: int, heads: int, dtype: str, architecture: int
) -> None:
    compiles(tokens, dim, heads, dtype, architecture)


def test_rows_of_a_group_that_fits_a_tile_are_read_once() -> None:
    attributes = {"cluster_size": 49, "levels": 1}
    compiled, launch = compile_kernel(KERNEL, {"q": (None, 1, 98, 32)}, attributes, "fp32", 90)
    per_thread = 32 * launch.constants["lanes"] * launch.constants["steps"] // compiled.threads
    assert len(re.findall(r"ld\.global\.v4\.b32", compiled.ptx)) == per_thread // 4

# SPDX-License-Identifier: Apache-2.0
"""ClusterAttention's GPU kernel, in Triton's interpreter and as PTX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import DTYPES, interpret

from metaformer_export.export.ops.cluster_attention.op import reference
from metaformer_export.export.ops.cluster_attention.plugin import KERNEL
from metaformer_export.export.ops.compiling import ARCHITECTURES, compile_kernel, resources

SCALE = 0.7
"""Not a power of two, and large enough that softmax is far from uniform."""
STORED = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-7}
"""What storing the output may change of it; the interpreter truncates to bfloat16, a GPU rounds."""
WEIGHTED = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 8e-3}
"""Allowed otherwise, over the reference's root mean square: the weights of 16-bit values are of 16 bits too."""
FAMILIES = [*((length, dim) for length in (3136, 784, 196, 49) for dim in (32, 24)), (49, 48)]


def case(length: int, dim: int, batch: int = 2, heads: int = 2, dtype: str = "fp32") -> tuple[torch.Tensor, ...]:
    random = np.random.RandomState(length + dim)
    q, k, v = torch.from_numpy(random.standard_normal((3, batch, heads, length, dim))).to(DTYPES[dtype])
    return q, k, v, torch.from_numpy(np.argsort(random.standard_normal((batch, heads, length)), -1))


def attended(inputs: tuple[torch.Tensor, ...], cluster: int = 49, overlap: int = 20) -> torch.Tensor:
    return interpret(KERNEL, inputs, {"cluster_size": cluster, "overlap": overlap, "scale": SCALE})


def error(
    got: torch.Tensor, inputs: tuple[torch.Tensor, ...], cluster: int = 49, overlap: int = 20, stored: float = 0.0
) -> float:
    """Largest difference that storing the output does not explain, over the reference's root mean square."""
    q, k, v = (each.double().numpy() for each in inputs[:3])
    want = reference(q, k, v, inputs[3].numpy(), cluster, overlap, SCALE)
    difference = np.abs(got.double().numpy() - want) - stored * np.abs(want)
    return float(difference.max() / np.sqrt((want**2).mean()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "dim"), [(49, 32), (49, 24), (49, 48), (98, 24), (196, 32), (196, 24), (392, 24)])
def test_kernel_matches_the_reference(length: int, dim: int, dtype: str) -> None:
    inputs = case(length, dim, dtype=dtype)
    got = attended(inputs)
    assert got.dtype == DTYPES[dtype]
    assert error(got, inputs, stored=STORED[dtype]) <= WEIGHTED[dtype]


@pytest.mark.parametrize(
    ("length", "dim"),
    [(3136, 24), (784, 32), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((3136, 32), (784, 24)))],
)
def test_kernel_matches_the_reference_on_long_sequences(length: int, dim: int) -> None:
    inputs = case(length, dim, batch=1, heads=1)
    assert error(attended(inputs), inputs) <= 1e-5


@given(cluster=st.integers(1, 20), pairs=st.integers(0, 2), dim=st.integers(1, 40), data=st.data())
@settings(max_examples=25, deadline=None)
def test_kernel_matches_the_reference_at_any_size(cluster: int, pairs: int, dim: int, data: st.DataObject) -> None:
    overlap, batch = data.draw(st.integers(0, cluster)), data.draw(st.integers(1, 3))
    inputs = case(cluster * max(2 * pairs, 1), dim, batch, heads=data.draw(st.integers(1, 3)))
    assert error(attended(inputs, cluster, overlap), inputs, cluster, overlap) <= 1e-5


@pytest.mark.parametrize(("cluster", "overlap", "dim"), [(64, 64, 128), (64, 0, 100), (33, 31, 65), (16, 1, 16)])
def test_kernel_matches_the_reference_at_the_edges_of_its_blocks(cluster: int, overlap: int, dim: int) -> None:
    inputs = case(2 * cluster, dim, batch=1)
    assert error(attended(inputs, cluster, overlap), inputs, cluster, overlap) <= 1e-5


def test_softmax_is_of_the_largest_logit_wherever_it_is() -> None:
    """Logits of several hundreds do not overflow, for keys of a cluster and for borrowed ones."""
    q, k, v, order = case(98, 32)
    assert error(attended((30 * q, k, v, order)), (30 * q, k, v, order)) <= 1e-4


def test_no_image_or_head_sees_another() -> None:
    inputs = case(98, 24, batch=3, heads=3)
    whole = attended(inputs)
    assert torch.equal(attended(tuple(each[2:].contiguous() for each in inputs)), whole[2:])
    assert torch.equal(attended(tuple(each[:, 1:2].contiguous() for each in inputs)), whole[:, 1:2])


def test_an_order_that_is_none_touches_nothing_outside() -> None:
    """TensorRT times kernels on arbitrary data; indices outside the sequence act as the nearest one in it."""
    q, k, v, order = case(98, 24, batch=1, heads=1)
    order[0, 0, 3], order[0, 0, 50] = -(2**62), 2**62
    inside = order.clamp(0, 97)
    assert torch.equal(attended((q, k, v, order))[0, 0, inside[0, 0]], attended((q, k, v, inside))[0, 0, inside[0, 0]])


@pytest.mark.parametrize(
    ("length", "cluster", "overlap", "dim", "reason"),
    [
        (128, 64, 0, 129, "up to 128 channels, got clusters of 64 of 129 channels"),
        (130, 65, 0, 8, "up to 64 tokens .* got clusters of 65"),
        (98, 49, 50, 8, "one cluster of 49, got an overlap of 50"),
        (147, 49, 20, 8, "pairs of clusters of 49 tokens, got 147 tokens"),
    ],
)
def test_sizes_that_it_cannot_do_are_refused(length: int, cluster: int, overlap: int, dim: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        attended(case(length, dim, batch=1, heads=1), cluster, overlap)


def compiles(length: int, dim: int, dtype: str, architecture: int) -> None:
    """PTX that takes what TensorRT passes, without spills, in memory that leaves room for five programs."""
    shapes = dict.fromkeys("qkv", (-1, 3, length, dim)) | {"order": (-1, 3, length)}
    attributes = {"cluster_size": 49, "overlap": 20, "scale": dim**-0.5}
    compiled, launch = compile_kernel(KERNEL, shapes, attributes, dtype, architecture)
    needs = resources(compiled)
    assert compiled.parameters == ("u64", "u64", "u64", "u64", "u32", "u64")
    assert compiled.threads == 32 * launch.warps == 128
    assert compiled.shared_memory <= 20 * 1024
    assert needs.spill_stores + needs.spill_loads == 0
    assert launch.programs == (3, length // 49)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_compiles_without_a_gpu(architecture: int, dtype: str) -> None:
    compiles(3136, 32, dtype, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "dim"), FAMILIES)
def test_kernel_compiles_for_every_stage(length: int, dim: int, architecture: int, dtype: str) -> None:
    compiles(length, dim, dtype, architecture)

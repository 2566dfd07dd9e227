# SPDX-License-Identifier: Apache-2.0
"""LocalAttention's GPU kernel, in Triton's interpreter and as PTX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import DTYPES, interpret

from metaformer_export.export.ops.compiling import ARCHITECTURES, compile_kernel, resources
from metaformer_export.export.ops.local_attention.op import reference
from metaformer_export.export.ops.local_attention.plugin import KERNEL

SCALE = 0.7
"""Not a power of two, and large enough that softmax is far from uniform."""
STORED = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-7}
"""What storing the output may change of it; the interpreter truncates to bfloat16, a GPU rounds."""
WEIGHTED = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 1e-2}
"""Allowed otherwise, over the reference's root mean square: the weights of 16-bit values are of 16 bits too."""
STAGES = [(16, 56, 1), (32, 56, 2), (32, 28, 1), (64, 28, 2), (64, 14, 1), (128, 14, 2), (128, 7, 1)]
"""Channels of a head, side of the map and stride in ACmix-ResNet at 224 x 224."""


def case(
    height: int, width: int, dim: int, heads: int = 2, batch: int = 1, dtype: str = "fp32"
) -> tuple[torch.Tensor, ...]:
    random = np.random.RandomState(height * 100 + width + dim)
    maps = random.standard_normal((3, batch, heads * dim, height, width))
    return tuple(torch.from_numpy(maps).to(DTYPES[dtype]))


def attended(inputs: tuple[torch.Tensor, ...], heads: int = 2, window: int = 7, stride: int = 1) -> torch.Tensor:
    return interpret(KERNEL, inputs, {"heads": heads, "window": window, "stride": stride, "scale": SCALE})


def error(
    got: torch.Tensor,
    inputs: tuple[torch.Tensor, ...],
    heads: int = 2,
    window: int = 7,
    stride: int = 1,
    stored: float = 0.0,
) -> float:
    """Largest difference that storing the output does not explain, over the reference's root mean square."""
    q, k, v = (each.double().numpy() for each in inputs)
    want = reference(q, k, v, heads, window, stride, SCALE)
    assert got.shape == want.shape
    difference = np.abs(got.double().numpy() - want) - stored * np.abs(want)
    return float(difference.max() / np.sqrt((want**2).mean()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "side", "stride"), [(16, 14, 1), (32, 14, 2), (64, 7, 1), (128, 7, 1), (128, 14, 2)])
def test_kernel_matches_the_reference(dim: int, side: int, stride: int, dtype: str) -> None:
    inputs = case(side, side, dim, dtype=dtype)
    got = attended(inputs, stride=stride)
    assert got.dtype == DTYPES[dtype]
    assert error(got, inputs, stride=stride, stored=STORED[dtype]) <= WEIGHTED[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "side", "stride"), STAGES[:-2])
def test_kernel_matches_the_reference_on_large_maps(dim: int, side: int, stride: int) -> None:
    inputs = case(side, side, dim, heads=1)
    assert error(attended(inputs, heads=1, stride=stride), inputs, heads=1, stride=stride) <= 1e-5


@given(height=st.integers(4, 13), width=st.integers(4, 19), stride=st.integers(1, 3), data=st.data())
@settings(max_examples=15, deadline=None)
def test_kernel_matches_the_reference_at_any_size(height: int, width: int, stride: int, data: st.DataObject) -> None:
    window, heads = data.draw(st.sampled_from([1, 3, 5, 7])), data.draw(st.integers(1, 2))
    inputs = case(height, width, data.draw(st.integers(1, 40)), heads, batch=data.draw(st.integers(1, 2)))
    assert error(attended(inputs, heads, window, stride), inputs, heads, window, stride) <= 1e-5


@pytest.mark.parametrize("dim", [17, 33, 65, 100])
def test_kernel_matches_the_reference_at_the_edges_of_its_blocks(dim: int) -> None:
    inputs = case(5, 9, dim)
    assert error(attended(inputs), inputs) <= 1e-5


def test_a_window_may_be_almost_twice_the_map() -> None:
    """Every key is then seen up to three times: as itself, and mirrored at both ends."""
    inputs = case(6, 7, 8)
    assert error(attended(inputs, window=11), inputs, window=11) <= 1e-5


def test_softmax_is_of_the_largest_logit_wherever_it_is() -> None:
    """Logits of several hundreds do not overflow, in whichever block of keys they are."""
    q, k, v = case(12, 12, 16)
    assert error(attended((30 * q, k, v)), (30 * q, k, v)) <= 1e-4


def test_keys_outside_the_window_do_not_count_however_large_their_logits_are() -> None:
    q, k, v = case(12, 12, 16, heads=1)
    k[0, :, 11, 11] = 1e4
    hidden = attended((q, k, v), heads=1)[0, :, :8, :8]
    k[0, :, 11, 11] = 0
    assert torch.equal(hidden, attended((q, k, v), heads=1)[0, :, :8, :8])


def test_no_image_or_head_sees_another() -> None:
    inputs = case(8, 9, 8, heads=2, batch=2)
    whole = attended(inputs)
    assert torch.equal(attended(tuple(each[1:].contiguous() for each in inputs)), whole[1:])
    assert torch.equal(attended(tuple(each[:, 8:16].contiguous() for each in inputs), heads=1), whole[:, 8:16])


@pytest.mark.parametrize(
    ("height", "width", "dim", "reason"),
    [(3, 9, 8, "half a window of 7 at the border, more than maps of 3x9 have"), (9, 9, 129, "at most 128 channels")],
)
def test_sizes_that_it_cannot_do_are_refused(height: int, width: int, dim: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        attended(case(height, width, dim, heads=1), heads=1)


def compiles(dim: int, side: int, stride: int, dtype: str, architecture: int) -> None:
    """PTX that takes what TensorRT passes, without spills, in the memory that every launch gets without asking."""
    shapes = dict.fromkeys("qkv", (-1, 4 * dim, side, side))
    attributes = {"heads": 4, "window": 7, "stride": stride, "scale": dim**-0.5}
    compiled, launch = compile_kernel(KERNEL, shapes, attributes, dtype, architecture)
    needs = resources(compiled)
    assert compiled.parameters == ("u64", "u64", "u64", "u32", "u64")
    assert compiled.threads == 32 * launch.warps == 128
    assert compiled.shared_memory <= 48 * 1024
    assert needs.spill_stores + needs.spill_loads == 0
    tall, wide = (-(-side // stride // tile) for tile in (4 if dim > 64 else 7, 8))
    assert launch.programs == (tall * wide, 4 * -(-dim // 64))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_compiles_without_a_gpu(architecture: int, dtype: str) -> None:
    compiles(32, 28, 1, dtype, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "side", "stride"), STAGES)
def test_kernel_compiles_for_every_stage(dim: int, side: int, stride: int, architecture: int, dtype: str) -> None:
    compiles(dim, side, stride, dtype, architecture)

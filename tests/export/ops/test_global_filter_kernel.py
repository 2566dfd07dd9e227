# SPDX-License-Identifier: Apache-2.0
"""GlobalFilter's GPU kernel, in Triton's interpreter and as PTX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import DTYPES, interpret

from metaformer_export.export.ops.compiling import ARCHITECTURES, compile_kernel, resources
from metaformer_export.export.ops.global_filter.op import reference
from metaformer_export.export.ops.global_filter.plugin import KERNEL

ROUNDING = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-7}
"""What storing the output may change of it; the interpreter truncates to bfloat16, a GPU rounds."""
SIZES = [(14, 14), (7, 7), (24, 24), (12, 12), (10, 13)]


def case(height: int, width: int, batch: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.RandomState(height * 100 + width)
    x = random.standard_normal((batch, channels, height, width)).astype(np.float32)
    weight = random.standard_normal((channels, height, width // 2 + 1, 2)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(weight)


def filtered(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return interpret(KERNEL, (x, weight), {"height": x.shape[2], "width": x.shape[3]})


def error(got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rounding: float = 0.0) -> float:
    """Largest difference that rounding of the output does not explain, over the reference's standard deviation."""
    want = reference(x.double().numpy(), weight.double().numpy())
    difference = np.abs(got.double().numpy() - want) - rounding * np.abs(want)
    return float(difference.max() / max(want.std(), 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_kernel_matches_the_reference(height: int, width: int, dtype: str) -> None:
    x, weight = case(height, width, batch=5, channels=3)
    x = x.to(DTYPES[dtype])
    got = filtered(x, weight)
    assert got.dtype == x.dtype
    assert error(got, x, weight, ROUNDING[dtype]) <= 1e-5


@given(height=st.integers(1, 32), width=st.integers(1, 32), batch=st.integers(1, 40), channels=st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_kernel_matches_the_reference_at_any_size(height: int, width: int, batch: int, channels: int) -> None:
    x, weight = case(height, width, batch, channels)
    assert error(filtered(x, weight), x, weight) <= 1e-5


def test_no_image_or_channel_sees_another() -> None:
    x, weight = case(7, 7, batch=18, channels=2)
    whole = filtered(x, weight)
    alone = filtered(x[17:].contiguous(), weight)
    assert float((alone - whole[17:]).abs().max()) <= 1e-6
    one = filtered(x[:, 1:].contiguous(), weight[1:].contiguous())
    assert float((one - whole[:, 1:]).abs().max()) <= 1e-6


def test_maps_that_do_not_fit_are_refused() -> None:
    x, weight = case(33, 7, batch=1, channels=1)
    with pytest.raises(ValueError, match="at most 32x32, got 33x7"):
        filtered(x, weight)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_compiles_without_a_gpu(architecture: int, dtype: str) -> None:
    shapes = {"x": (-1, 240, 14, 14), "weight": (240, 14, 8, 2)}
    compiled, launch = compile_kernel(KERNEL, shapes, {"height": 14, "width": 14}, dtype, architecture)
    needs = resources(compiled)
    assert compiled.parameters == ("u64", "u64", "u32", "u64")
    assert compiled.threads == 32 * launch.warps
    assert compiled.shared_memory <= 48 * 1024
    assert needs.spill_stores + needs.spill_loads <= (0 if dtype != "fp32" else 64)
    assert f".target sm_{architecture}" in compiled.ptx

# SPDX-License-Identifier: Apache-2.0
"""For which GPUs kernels can be compiled, and what is said of the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from metaformer_export.errors import InputError, MissingDependencyError
from metaformer_export.export.ops.catalog import find
from metaformer_export.export.ops.compiling import (
    ARCHITECTURES,
    Compiled,
    can_compile_for,
    check_compiler,
    compile_kernel,
    resources,
)
from metaformer_export.export.ops.use import Use

HEADS = (-1, 2, 98, 32)
USES = (
    Use("GlobalFilter", {"x": (-1, 8, 7, 7), "weight": (8, 7, 4, 2)}, {"height": 7, "width": 7}),
    Use("BalancedClustering", {"q": HEADS}, {"cluster_size": 49, "levels": 1}),
    Use(
        "ClusterAttention",
        {**dict.fromkeys("qkv", HEADS), "order": HEADS[:3]},
        {"cluster_size": 49, "overlap": 20, "scale": 0.2},
    ),
    Use(
        "LocalAttention",
        dict.fromkeys("qkv", (-1, 64, 14, 14)),
        {"heads": 4, "window": 7, "stride": 1, "scale": 0.25},
    ),
)
NEWER = {103: "sm_103a", 110: "sm_110a", 120: "sm_120a", 121: "sm_121a"}
"""Beside those that kernels are surveyed for: B300, Thor, RTX 50 and DGX Spark, by the names of ptxas."""


def compiled(use: Use, architecture: int) -> Compiled:
    op = find(use.op_type)
    assert op is not None
    assert op.kernel is not None
    made, _ = compile_kernel(op.kernel, use.shapes, use.attributes, "fp32", architecture)
    return made


def test_kernels_can_be_compiled_for_what_ptxas_takes() -> None:
    able = {architecture for architecture in range(60, 200) if can_compile_for(architecture)}
    assert able - {110} == {*ARCHITECTURES, 87, 103, 120, 121}  # 110 from CUDA 13 on, which Triton has from 3.7 on


@pytest.mark.parametrize("architecture", NEWER)
def test_a_filter_compiles_for_gpus_newer_than_those_surveyed(architecture: int) -> None:
    if not can_compile_for(architecture):
        pytest.skip(f"this Triton does not know {architecture}.")
    made = compiled(USES[0], architecture)
    assert f".target {NEWER[architecture]}\n" in made.ptx
    needs = resources(made)
    assert needs.spill_stores + needs.spill_loads == 0
    assert made.shared_memory <= 48 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("use", USES[1:], ids=lambda use: use.op_type)
@pytest.mark.parametrize("architecture", NEWER)
def test_every_kernel_compiles_for_gpus_newer_than_those_surveyed(architecture: int, use: Use) -> None:
    if not can_compile_for(architecture):
        pytest.skip(f"this Triton does not know {architecture}.")
    made = compiled(use, architecture)
    assert f".target {NEWER[architecture]}\n" in made.ptx
    assert resources(made).spill_stores == 0
    assert made.shared_memory <= 48 * 1024


@pytest.mark.parametrize(("architecture", "named"), [(75, "7.5"), (88, "8.8"), (130, "13.0")])
def test_a_gpu_that_ptxas_does_not_take_is_one_line(architecture: int, named: str, capfd) -> None:
    with pytest.raises(InputError, match=rf"compute capability {named}: Triton .* takes 8.0, 8.6, .* 9.0") as caught:
        compiled(USES[0], architecture)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; --no-plugins goes around the kernels.")
    assert capfd.readouterr() == ("", "")


def test_without_triton_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a GPU is one that kernels can be compiled for is known all the same."""
    monkeypatch.setitem(sys.modules, "triton", None)
    assert [each for each in (75, 80, 90, 121, 130) if can_compile_for(each)] == [80, 90, 121]
    with pytest.raises(MissingDependencyError, match=r'Triton is not installed; pip install "metaformer-export\[tens'):
        check_compiler(90)


@pytest.mark.parametrize(
    ("tool", "architecture", "variable", "left"),
    [("ptxas", 90, "TRITON_PTXAS_PATH", 100), ("ptxas-blackwell", 100, "TRITON_PTXAS_BLACKWELL_PATH", 90)],
)
def test_a_triton_without_an_assembler_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tool: str, architecture: int, variable: str, left: int
) -> None:
    from triton.knobs import NvidiaTool

    found = NvidiaTool.from_path
    monkeypatch.setattr(
        NvidiaTool, "from_path", staticmethod(lambda path: None if Path(path).stem == tool else found(path))
    )
    assert (can_compile_for(architecture), can_compile_for(left)) == (False, True)
    with pytest.raises(MissingDependencyError, match=rf"no assembler \(Cannot find {tool}\); set {variable} to"):
        check_compiler(architecture)
    check_compiler(left)

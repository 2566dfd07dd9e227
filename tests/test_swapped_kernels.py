# SPDX-License-Identifier: Apache-2.0
"""Models, and blocks of models, whose mixer ops are run by the GPU kernels, in Triton's interpreter.

Everything around the kernels is eager: what is held against eager is how the models call them, and what they compute
on what a model gives them.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import support
import torch
from kernels import interpret
from small_models import KINDS, SIDES
from torch import Tensor, nn

from metaformer_export.models import acmix_resnet, boat_cswin, boat_swin, hornet
from metaformer_export.models.family import BuildOptions

BLOCKS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "hornet": (hornet.Block(8, 2, (7, 4)), (3, 8, 7, 7), ["GlobalFilter"]),
    "hornet, filter resized": (hornet.Block(8, 2, (14, 8)), (2, 8, 6, 9), ["GlobalFilter"]),
    "boat_swin": (boat_swin.Block(32, 2, 3), (2, 14, 14, 32), ["BalancedClustering", "ClusterAttention"]),
    "boat_cswin": (
        boat_cswin.Block(32, 2, 7, content=True),
        (1, 14, 14, 32),
        ["BalancedClustering", "ClusterAttention"],
    ),
    "boat_cswin, one cluster": (
        boat_cswin.Block(32, 2, None, content=True),
        (2, 7, 7, 32),
        ["BalancedClustering", "ClusterAttention"],
    ),
    "acmix_resnet": (acmix_resnet.Bottleneck(24, 16, 1), (2, 24, 9, 8), ["LocalAttention"]),
    "acmix_resnet, stride 2": (acmix_resnet.Bottleneck(24, 16, 2), (2, 24, 9, 8), ["LocalAttention"]),
}
"""With the shape of an input, and the kernels that take part in this order."""
MODELS: dict[str, tuple[nn.Module, tuple[int, int]]] = {
    kind: (family.build(config, BuildOptions(num_classes=10)), SIDES.get(kind, (64, 96)))
    for kind, (family, config) in KINDS.items()
    if kind in ("hornet_gf", "boat_swin", "boat_cswin", "acmix_resnet")
}
NARROW = hornet.FAMILY.build(
    replace(support.SMALL, width=4, filters=(None, None, (14, 8), None)), BuildOptions(num_classes=10)
)
"""A whole model of 15 filtered channels: the interpreter takes a tenth of a second for each."""


@pytest.fixture(scope="module")
def swapped() -> ModuleType:
    return importlib.import_module("swapped")


def compared(swapped: ModuleType, model: nn.Module, x: Tensor) -> tuple[float, float, list[str]]:
    """With kernels against eager: the largest error over the spread, the least share of tokens that a clustering puts
    into the same cluster, and the operators whose kernels ran. Clusterings go on from eager's decisions.
    """
    support.fill_golden(model)
    names, ran = {id(kernel): name for name, kernel in swapped.KERNELS.items()}, []

    def execute(kernel: object, inputs: tuple[Tensor, ...], attributes: object) -> Tensor:
        ran.append(names[id(kernel)])
        return interpret(kernel, inputs, attributes)

    with torch.inference_mode():
        with swapped.clusterings(model) as orders:
            want = model(x)
        with swapped.clusterings(model, orders) as made, swapped.kernels_in_place(execute):
            got = model(x)
        assert torch.equal(model(x), want)  # eager again
    shares = [swapped.same_clusters(made[path], order) for path, order in orders.items()]
    for path, order in orders.items():
        assert made[path].sort(-1).values.equal(order.sort(-1).values)
    return support.relative_error(got.numpy(), want.numpy()), min(shares, default=1.0), ran


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_the_same_with_kernels(name: str, swapped: ModuleType) -> None:
    block, shape, kernels = BLOCKS[name]
    error, alike, ran = compared(swapped, block, torch.from_numpy(support.image(*shape)))
    assert error <= 1e-5
    assert alike >= 0.99
    assert ran == kernels


def test_a_model_computes_the_same_with_kernels(swapped: ModuleType) -> None:
    error, _, ran = compared(swapped, NARROW, torch.from_numpy(support.image(3, 3, 64, 96)))
    assert error <= 1e-5
    assert ran == ["GlobalFilter"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_models_compute_the_same_with_kernels(kind: str, swapped: ModuleType) -> None:
    model, sides = MODELS[kind]
    error, alike, ran = compared(swapped, model, torch.from_numpy(support.image(1, 3, *sides)))
    assert error <= 1e-5
    assert alike >= 0.99
    assert len(ran) == {"hornet_gf": 2, "boat_swin": 6, "boat_cswin": 8, "acmix_resnet": 4}[kind]


def test_wrong_clusters_show(swapped: ModuleType) -> None:
    order = torch.arange(196).repeat(1, 1, 1)
    swapped_two = order.clone()
    swapped_two[..., [48, 49]] = swapped_two[..., [49, 48]]
    assert swapped.same_clusters(order, order) == 1.0
    assert swapped.same_clusters(swapped_two, order) == pytest.approx(1 - 2 / 196)
    assert swapped.same_clusters(order.flip(-1), order) == 0.0


def test_kernels_are_found_without_the_packages_of_onnx() -> None:
    script = """
        import sys
        absent = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors", "ml_dtypes")
        sys.modules.update(dict.fromkeys(absent))
        sys.path.insert(0, sys.argv[1])
        import gpu_kernels, gpu_models
        import swapped
        from metaformer_export.export.ops.running import run
        assert not [name for name in sys.modules if name.partition(".")[0] in absent and sys.modules[name]]
        print(*(kernel.load().fn.__name__ for kernel in swapped.KERNELS.values()))
    """
    folder = Path(__file__).parent.parent / "benchmarks"
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["global_filter", "balanced_clustering", "cluster_attention", "local_attention"], (
        done.stderr
    )

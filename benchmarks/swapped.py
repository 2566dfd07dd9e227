# SPDX-License-Identifier: Apache-2.0
"""Eager models whose mixer ops are run by the GPU kernels, and their clusterings, observed or given.

The kernels are those that TensorRT gets as plugins; here PyTorch calls them, on a GPU or in Triton's interpreter.
Nothing here needs onnx or onnx_ir, which a machine with a GPU may not have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from metaformer_export.export import ops
from metaformer_export.export.ops.kernel import Attributes, Kernel
from metaformer_export.export.ops.running import run
from metaformer_export.models.mixers import acmix, feature_space_attention, global_filter

Execute = Callable[[Kernel, tuple[Tensor, ...], Attributes], Tensor]
"""Runs a kernel on contiguous inputs: export.ops.running.run, or the interpreter."""
Orders = dict[str, Tensor]
"""For each clustering, by the path of its module: (B, heads, N) int64, the tokens in order of clusters."""
_FOLDERS = {
    "GlobalFilter": "global_filter",
    "BalancedClustering": "balanced_clustering",
    "ClusterAttention": "cluster_attention",
    "LocalAttention": "local_attention",
}


def _kernel(folder: str) -> Kernel:
    """The kernel of an operator."""
    package = f"{ops.__name__}.{folder}"
    if find_spec("onnx_ir") is None:
        _import_without_onnx(package, folder)
    kernel: Kernel = import_module(f"{package}.plugin").KERNEL
    return kernel


def _import_without_onnx(package: str, folder: str) -> None:
    """Pass by the operator's package, which writes ONNX; what it means and its kernel need none."""
    bare = ModuleType(package)
    bare.__path__ = [str(Path(ops.__path__[0], folder))]
    sys.modules[package] = bare


KERNELS: Mapping[str, Kernel] = {op_type: _kernel(folder) for op_type, folder in _FOLDERS.items()}
"""All kernels, by operator."""


def _global_filter(execute: Execute, x: Tensor, weight: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    resized = global_filter.resize_filter(weight.float(), height, width // 2 + 1)
    inputs = (x.contiguous(), resized.contiguous())
    return execute(KERNELS["GlobalFilter"], inputs, {"height": height, "width": width})


def _balanced_clustering(execute: Execute, q: Tensor, levels: int) -> Tensor:
    attributes = {"cluster_size": q.shape[2] >> levels, "levels": levels}
    return execute(KERNELS["BalancedClustering"], (q.contiguous(),), attributes)


def _cluster_attention(
    execute: Execute, q: Tensor, k: Tensor, v: Tensor, order: Tensor, cluster_size: int, overlap: int, scale: float
) -> Tensor:
    inputs = (q.contiguous(), k.contiguous(), v.contiguous(), order.contiguous())
    attributes = {"cluster_size": cluster_size, "overlap": overlap, "scale": scale}
    return execute(KERNELS["ClusterAttention"], inputs, attributes)


def _local_attention(
    execute: Execute, q: Tensor, k: Tensor, v: Tensor, heads: int, window: int, stride: int, scale: float
) -> Tensor:
    inputs = (q.contiguous(), k.contiguous(), v.contiguous())
    attributes = {"heads": heads, "window": window, "stride": stride, "scale": scale}
    return execute(KERNELS["LocalAttention"], inputs, attributes)


_MIXERS: tuple[tuple[ModuleType, str, Callable[..., Tensor]], ...] = (
    (global_filter, "global_filter", _global_filter),
    (feature_space_attention, "balanced_clustering", _balanced_clustering),
    (feature_space_attention, "cluster_attention", _cluster_attention),
    (acmix, "local_attention", _local_attention),
)
"""Where models look a mixer's function up, and what takes its place."""


@contextmanager
def kernels_in_place(execute: Execute = run) -> Iterator[None]:
    """Inside, every model's mixer ops are run by their kernels; all else stays as it is.

    Inputs are copied where they are not contiguous, as queries, keys and values of heads are not.
    """
    with ExitStack() as stack:
        for module, name, kernel in _MIXERS:
            stack.enter_context(replaced(module, name, partial(kernel, execute)))
        yield


@contextmanager
def replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Inside, the module has that value under that name."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def clusterings(model: nn.Module, given: Orders | None = None) -> Iterator[Orders]:
    """Inside, what a run of the model decides is noted; where orders are given, it goes on with those instead."""
    made: Orders = {}

    def note(path: str, module: nn.Module, inputs: object, order: Tensor) -> Tensor | None:
        made[path] = order
        return None if given is None else given[path].to(order.device)

    handles = [
        module.register_forward_hook(partial(note, path))
        for path, module in model.named_modules()
        if isinstance(module, feature_space_attention.BalancedClustering)
    ]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


def same_clusters(one: Tensor, other: Tensor, cluster_size: int = feature_space_attention.CLUSTER) -> float:
    """Share of tokens that two orders (B, heads, N) put into the same cluster."""
    first, second = (torch.argsort(order, -1) // cluster_size for order in (one, other))
    return float((first == second.to(first.device)).double().mean())

# SPDX-License-Identifier: Apache-2.0
"""Each mixer op's kernel against float64 and against eager PyTorch, at the sizes of the families, on a GPU.

A kernel that does not hold parity is not timed. Its time is held against the floor: the bytes that must move, each
input read and each output written once, over the bandwidth of a copy on the same GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_timing import DEVICE, Call, Times, copy_bandwidth, interleaved, sets_beyond_cache
from swapped import KERNELS, same_clusters
from torch import Tensor

from metaformer_export.export.ops.kernel import Attributes, Kernel
from metaformer_export.export.ops.running import run
from metaformer_export.export.ops.sizes import uses_of
from metaformer_export.export.ops.use import Use
from metaformer_export.models import registry
from metaformer_export.models.mixers import feature_space_attention as fsla
from metaformer_export.models.mixers.global_filter import fft_filter
from metaformer_export.models.mixers.local_attention import local_attention
from metaformer_export.runtime.bench import median

MODELS = ("hornet_t_gf", "boat_swin_t", "acmix_r26")
"""Whose sizes are taken, and which are run as a whole."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BATCH = {"GlobalFilter": 256, "BalancedClustering": 64, "ClusterAttention": 64, "LocalAttention": 64}
_LEFT_OUT = ("BalancedClustering", "bf16")
"""It takes a minute to compile, and models decide on clusters in float32."""
_AT_ONCE = 8
"""Images whose float64 reference is computed together."""
LEAST_SAME_CLUSTERS = 0.99
"""Share of tokens in the cluster that float64 puts them into; rounding may swap a token in a hundred."""

EAGER: Mapping[str, Callable[[tuple[Tensor, ...], Attributes], Tensor]] = {
    "GlobalFilter": lambda inputs, attributes: fft_filter(*inputs),
    "BalancedClustering": lambda inputs, attributes: fsla.balanced_clustering(*inputs, int(attributes["levels"])),
    "ClusterAttention": lambda inputs, attributes: fsla.cluster_attention(*inputs, *attributes.values()),
    "LocalAttention": lambda inputs, attributes: local_attention(*inputs, *attributes.values()),
}
"""The operators as the models compute them in PyTorch; their arguments are the node's attributes in order."""


@dataclass(frozen=True)
class Limit:
    """Of errors over the reference's root mean square."""

    rms: float
    largest: float


LIMITS = {"fp32": Limit(1e-5, 1e-4), "fp16": Limit(2e-3, 2e-2), "bf16": Limit(1.6e-2, 1.6e-1)}
"""What the arithmetic and the storage of a type allow; the largest of millions is ten times the root mean square."""


@dataclass(frozen=True)
class Target:
    """What a kernel should reach: a share of the floor, and how many times faster than eager it is."""

    over_eager: float
    floor_share: float | None = None


TARGETS = {
    "GlobalFilter": Target(4.0, 0.6),
    "BalancedClustering": Target(10.0),
    "ClusterAttention": Target(3.0),
}


@dataclass
class KernelRow:
    """One kernel at one size and type. Errors are over the reference's root mean square, times are of one call.

    Attributes:
        rms_error, max_error: of the kernel against float64; `eager_` of eager, in the same type.
        rms_from_eager: of the kernel against eager.
        same_clusters: of a clustering, in place of errors, the share of tokens in float64's cluster.
        floor_us: bytes that must move over the bandwidth of a copy, `copy_gb_s`.
        kernel_host_us, eager_host_us: what the calls cost the host.
        late: timed regions in which the GPU may have waited for the host.
        missed: targets that are not reached, in words; None if there are none for the operator.
    """

    op: str
    size: str
    attributes: dict[str, int | float]
    batch: int
    dtype: str
    sets: int = 0
    rms_error: float | None = None
    max_error: float | None = None
    eager_rms_error: float | None = None
    eager_max_error: float | None = None
    rms_from_eager: float | None = None
    same_clusters: float | None = None
    eager_same_clusters: float | None = None
    runs: int = 0
    kernel_us: float | None = None
    eager_us: float | None = None
    over_eager: float | None = None
    copy_gb_s: float | None = None
    floor_us: float | None = None
    floor_share: float | None = None
    kernel_host_us: float | None = None
    eager_host_us: float | None = None
    late: int = 0
    missed: list[str] | None = None
    failure: str = ""


def uses(op_type: str) -> list[Use]:
    """The operator at every size that it has in MODELS."""
    return [use for name in MODELS for use in uses_of(*registry.find(name)) if use.op_type == op_type]


def sizes_of(use: Use, batch: int) -> dict[str, tuple[int, ...]]:
    """Of the inputs, the batch put in."""
    return {name: tuple(batch if length == -1 else length for length in shape) for name, shape in use.shapes.items()}


def bytes_moved(use: Use, batch: int, dtype: str) -> int:
    """Every input once and the output once; of queries that are taken with a stride, the rows that are."""
    kernel, shapes = KERNELS[use.op_type], sizes_of(use, batch)
    bytes_of = {"float": DTYPES[dtype].itemsize, "fp32": 4, "i64": 8}
    moved = {name: math.prod(shapes[name]) * bytes_of[type_] for name, type_ in kernel.inputs.items()}
    if use.op_type == "LocalAttention":
        rows = shapes["q"][2]
        moved["q"] = moved["q"] // rows * -(-rows // int(use.attributes["stride"]))
    return sum(moved.values()) + math.prod(kernel.output_shape(shapes, use.attributes)) * bytes_of[kernel.output]


def missed(op_type: str, over_eager: float, floor_share: float) -> list[str] | None:
    """Which targets of the operator are not reached, in words; None if it has none."""
    target = TARGETS.get(op_type)
    if target is None:
        return None
    found = []
    if over_eager < target.over_eager:
        found.append(f"{over_eager:.1f}x eager, wanted {target.over_eager:g}x")
    if target.floor_share is not None and floor_share < target.floor_share:
        found.append(f"{100 * floor_share:.0f} % of the floor, wanted {100 * target.floor_share:.0f} %")
    return found


def errors(got: Tensor, want: Tensor) -> tuple[float, float]:
    """Root mean square and largest difference over the root mean square of what is wanted; NaN where one is."""
    reference = want.double()
    difference = got.double() - reference
    norm = reference.square().mean().sqrt()
    return float(difference.square().mean().sqrt() / norm), float(difference.abs().max() / norm)


def measure(op_type: str, dtypes: tuple[str, ...], rounds: int, seconds: float) -> Iterator[KernelRow]:
    """A row for each size and type of one operator; one that cannot be measured says why."""
    bandwidth = copy_bandwidth()
    for use in uses(op_type):
        for dtype in dtypes:
            if (op_type, dtype) == _LEFT_OUT:
                continue
            row = KernelRow(op_type, use.size, dict(use.attributes), _BATCH[op_type], dtype)
            try:
                row.failure = check(row, use)
                if not row.failure:
                    _time(row, use, bandwidth, rounds, seconds)
            except Exception as error:  # of Triton, of CUDA or of PyTorch: each is a result
                row.failure = told(error)
            yield row
            torch.cuda.empty_cache()


def told(error: BaseException) -> str:
    """The first line of what it says, or of what caused it: Triton's errors first say where in the kernel they are."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def inputs_of(kernel: Kernel, shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int) -> tuple[Tensor, ...]:
    """Random inputs in the order of the node, normally distributed; an order is a random one."""
    random = torch.Generator(DEVICE).manual_seed(seed)

    def drawn(name: str) -> Tensor:
        noise = torch.randn(shapes[name], generator=random, device=DEVICE)
        if kernel.inputs[name] == "i64":
            return noise.argsort(-1)
        return noise.to(DTYPES[dtype]) if kernel.inputs[name] == "float" else noise

    return tuple(drawn(name) for name in kernel.inputs)


def check(row: KernelRow, use: Use) -> str:
    """Note the errors of kernel and eager against float64; why the kernel does not hold parity, or ""."""
    kernel = KERNELS[use.op_type]
    inputs = inputs_of(kernel, sizes_of(use, row.batch), row.dtype, seed=0)
    want, eager = _reference(use, inputs), EAGER[use.op_type](inputs, use.attributes)
    unwritten = torch.full_like(eager, -1 if kernel.output == "i64" else math.nan)
    del unwritten  # the memory that the output gets next: what the kernel leaves out shows
    got = run(kernel, inputs, use.attributes)
    if kernel.output == "i64":
        return _check_order(row, use, got, eager, want)
    row.rms_error, row.max_error = errors(got, want)
    row.eager_rms_error, row.eager_max_error = errors(eager, want)
    row.rms_from_eager = errors(got, eager)[0]
    limit = LIMITS[row.dtype]
    if row.rms_error <= limit.rms and row.max_error <= limit.largest:
        return ""
    return (
        f"parity does not hold: root mean square error {row.rms_error:.2g}, allowed {limit.rms:g}; "
        f"largest {row.max_error:.2g}, allowed {limit.largest:g}"
    )


def _check_order(row: KernelRow, use: Use, got: Tensor, eager: Tensor, want: Tensor) -> str:
    tokens = torch.arange(got.shape[-1], device=got.device)
    if not bool((got.sort(-1).values == tokens).all()):
        return "parity does not hold: the order misses tokens"
    size = int(use.attributes["cluster_size"])
    row.same_clusters, row.eager_same_clusters = (same_clusters(order, want, size) for order in (got, eager))
    if row.same_clusters >= LEAST_SAME_CLUSTERS:
        return ""
    return f"parity does not hold: {100 * row.same_clusters:.2f} % of the tokens are in float64's cluster"


def _reference(use: Use, inputs: tuple[Tensor, ...]) -> Tensor:
    """Eager in float64, some images at a time.

    GlobalFilter's on the CPU: a learned filter leaves spectra of no real map, of which cuFFT and others may make
    different things. There, eager is held against the operator's own reference by the tests.
    """
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    if use.op_type == "GlobalFilter":
        return EAGER[use.op_type](tuple(x.cpu() for x in wide), use.attributes).to(DEVICE)
    parts = zip(*(x.split(_AT_ONCE) for x in wide), strict=True)
    return torch.cat([EAGER[use.op_type](part, use.attributes) for part in parts])


def _time(row: KernelRow, use: Use, bandwidth: float, rounds: int, seconds: float) -> None:
    kernel, shapes = KERNELS[use.op_type], sizes_of(use, row.batch)
    moved = bytes_moved(use, row.batch, row.dtype)
    row.sets = sets_beyond_cache(moved)
    sets = [inputs_of(kernel, shapes, row.dtype, seed) for seed in range(1, row.sets + 1)]
    ours: list[Call] = [partial(_run, kernel, kernel.load(), inputs, use.attributes) for inputs in sets]
    theirs: list[Call] = [partial(EAGER[use.op_type], inputs, use.attributes) for inputs in sets]
    times = interleaved({"kernel": ours, "eager": theirs}, rounds=rounds, seconds=seconds, queued=True)
    note_times(row, times, moved, bandwidth)


def _run(kernel: Kernel, function: Any, inputs: tuple[Tensor, ...], attributes: Attributes) -> Tensor:
    return run(kernel, inputs, attributes, function=function)


def note_times(row: KernelRow, times: Mapping[str, Times], moved: int, bandwidth: float) -> None:
    """Put medians, and what follows from them, into the row.

    Args:
        times: of "kernel" and "eager".
        moved: bytes that must move.
        bandwidth: bytes per second of a copy.
    """
    kernel, eager = times["kernel"], times["eager"]
    row.runs = len(kernel.gpu)
    row.kernel_us, row.eager_us = 1e3 * median(kernel.gpu), 1e3 * median(eager.gpu)
    row.kernel_host_us, row.eager_host_us = 1e3 * median(kernel.host), 1e3 * median(eager.host)
    row.late = kernel.late + eager.late
    row.copy_gb_s, row.floor_us = bandwidth / 1e9, 1e6 * moved / bandwidth
    row.over_eager, row.floor_share = row.eager_us / row.kernel_us, row.floor_us / row.kernel_us
    row.missed = missed(row.op, row.over_eager, row.floor_share)

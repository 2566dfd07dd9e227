# SPDX-License-Identifier: Apache-2.0
"""Whole models on a GPU: eager, eager with the kernels in place of its mixer ops, and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gpu_kernels import DTYPES, told
from gpu_timing import DEVICE, Times, interleaved
from PIL import Image
from swapped import Orders, clusterings, kernels_in_place, replaced, same_clusters
from torch import Tensor, nn

from metaformer_export.calibration import images as photographs
from metaformer_export.calibration.images import ImageSet, preprocess
from metaformer_export.models import random_weights, registry
from metaformer_export.models.building import build
from metaformer_export.models.family import BuildOptions, Variant
from metaformer_export.models.mixers import window_attention
from metaformer_export.runtime.bench import median, p90

BATCH = 64
_COMPARED = 16
"""Images, the photographs and parts of them: a multiple of 16, as BATCH is, so that Triton compiles kernels once."""
LIMITS = {"fp32": 1e-5, "fp16": 0.01}
"""Root mean square errors over the spread of the logits; what eager itself has is allowed, too, and half more."""
_MORE_THAN_EAGER = 1.5
_FEWER_ALONE = 0.05
"""Share of tokens that a kernel's clusterings may have in other clusters than float64's, beyond eager's."""

Forward = Callable[[Tensor], Tensor]


@dataclass
class ParityRow:
    """One way to run one model, against eager float64 on the CPU. Errors are over the spread of its logits.

    Attributes:
        way: "eager" or "kernels".
        top1: share of images with the same first class.
        clusters: of a model that clusters, the mean share of tokens in float64's clusters, as it runs.
        rms_same_clusters: its error where float64's clusters are given, so that what is left is arithmetic.
        clusters_alone: each clustering by itself, those before it given: the mean share of tokens.
    """

    model: str
    way: str
    dtype: str
    images: int
    rms_error: float | None = None
    max_error: float | None = None
    top1: float | None = None
    clusters: float | None = None
    rms_same_clusters: float | None = None
    clusters_alone: float | None = None
    failure: str = ""


@dataclass
class ModelRow:
    """One way to run one model: ms of a batch as it is called, of the GPU's work alone, and until the call returns."""

    model: str
    way: str
    dtype: str
    batch: int
    runs: int = 0
    median_ms: float | None = None
    p90_ms: float | None = None
    gpu_ms: float | None = None
    host_ms: float | None = None
    over_eager: float | None = None
    over_eager_gpu: float | None = None
    rms_from_eager: float | None = None
    failure: str = ""


def model_of(name: str) -> tuple[nn.Module, Variant]:
    """What create_model makes without a checkpoint: float32, in eval mode, seeded, every branch alive.

    create_model itself can read checkpoints, and needs safetensors for that.
    """
    family, variant = registry.find(name)
    module = build(family, variant, BuildOptions())
    random_weights.fill(module, seed=0)
    return module.eval().requires_grad_(False), variant


def moved(model: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """A copy on another device; with it what modules hold beside parameters and buffers, which would be copied in
    every call.
    """
    copied = deepcopy(model).to(device, dtype)
    for module in copied.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, name, value.to(device))
    return copied


@contextmanager
def kept_masks() -> Iterator[None]:
    """Inside, the masks of shifted windows stay where they are used, as they do in their authors' code."""
    make = window_attention.shift_mask_like
    kept: dict[tuple[object, ...], Tensor] = {}

    def mask(x: Tensor, rows: int, columns: int, window: int, shift: int) -> Tensor:
        key = (rows, columns, window, shift, x.dtype, x.device.type)
        if key not in kept:
            kept[key] = make(x, rows, columns, window, shift)
        return kept[key]

    with replaced(window_attention, "shift_mask_like", mask):
        yield


def pictures(variant: Variant, count: int) -> Tensor:
    """(count, 3, H, W) float32: the photographs of the package, again and again, each time shifted."""
    files = sorted((Path(photographs.__file__).parent / "photographs").glob("*.jpg"))
    side = (variant.image_size, variant.image_size)
    planes = []
    for file in files:
        with Image.open(file) as image:
            planes.append(preprocess(image.convert("RGB"), variant.preprocessing, side))
    names = tuple(file.name for file in files)
    return torch.from_numpy(ImageSet(np.stack(planes), names, names, "the package").take(0, count))


def with_kernels(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output, its mixer ops run by the kernels."""
    with kernels_in_place():
        out: Tensor = model(x)
        return out


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "eager": lambda model, x: model(x),
    "kernels": with_kernels,
}


def measure(name: str, rounds: int, seconds: float, compiled: bool) -> Iterator[ParityRow | ModelRow]:
    """Parity of one model in float32 and float16, then its times in float16; torch.compile last.

    Rows of all ways come again with torch.compile's, timed beside it.
    """
    model, variant = model_of(name)
    failed = False
    with torch.no_grad(), kept_masks():
        for row in parity(name, model, pictures(variant, _COMPARED)):
            failed |= bool(row.failure)
            yield row
        if failed:
            return
        half = moved(model, DEVICE, DTYPES["fp16"])
        x = pictures(variant, BATCH).to(DEVICE, DTYPES["fp16"])
        ways: dict[str, Forward] = {way: partial(run, half) for way, run in WAYS.items()}
        yield from _rows(name, ways, x, rounds, seconds)
        if compiled:
            yield from _compiled(name, half, ways, x, rounds, seconds)


def parity(name: str, model: nn.Module, x: Tensor) -> Iterator[ParityRow]:
    """Eager and kernels, in float32 and in float16, against float64."""
    wide = moved(model, "cpu", torch.float64)
    with clusterings(wide) as orders:
        want = wide(x.double())
    for dtype in LIMITS:
        narrow, shown = moved(model, DEVICE, DTYPES[dtype]), x.to(DEVICE, DTYPES[dtype])
        rows = {way: ParityRow(name, way, dtype, len(x)) for way in WAYS}
        for way, row in rows.items():
            try:
                _compare(row, narrow, partial(WAYS[way], narrow, shown), want, orders)
                row.failure = misses(row, rows["eager"])
            except Exception as error:  # of Triton, of CUDA or of PyTorch: each is a result
                row.failure = told(error)
            yield row


def _compare(row: ParityRow, model: nn.Module, forward: Callable[[], Tensor], want: Tensor, orders: Orders) -> None:
    """Note the errors in the row; of a model that clusters also with float64's clusters given."""
    with clusterings(model) as made:
        row.rms_error, row.max_error, row.top1 = differences(forward(), want)
    if orders:
        row.clusters = _mean_share(made, orders)
        with clusterings(model, orders) as alone:
            row.rms_same_clusters = differences(forward(), want)[0]
        row.clusters_alone = _mean_share(alone, orders)


def differences(got: Tensor, want: Tensor) -> tuple[float, float, float]:
    """Root mean square and largest difference over the spread of what is wanted, and the share of equal classes."""
    got, want = got.double().cpu(), want.double().cpu()
    difference, spread = got - want, want.std(correction=0)
    top1 = (got.argmax(-1) == want.argmax(-1)).double().mean()
    return float(difference.square().mean().sqrt() / spread), float(difference.abs().max() / spread), float(top1)


def _mean_share(made: Orders, orders: Orders) -> float:
    return float(np.mean([same_clusters(made[path], order) for path, order in orders.items()]))


def misses(row: ParityRow, eager: ParityRow) -> str:
    """Why a model with kernels does not hold parity, or "": with the same clusters, where it makes any."""
    rms, own = (each.rms_error if each.rms_same_clusters is None else each.rms_same_clusters for each in (row, eager))
    if row.way == "eager" or rms is None or own is None:
        return ""
    limit = max(LIMITS[row.dtype], _MORE_THAN_EAGER * own)
    if not rms <= limit:
        return f"parity does not hold: root mean square error {rms:.2g}, allowed {limit:.2g}"
    least = 0.0 if eager.clusters_alone is None else eager.clusters_alone - _FEWER_ALONE
    if row.clusters_alone is not None and not row.clusters_alone >= least:
        return f"parity does not hold: {row.clusters_alone:.3f} of tokens in the same cluster, at least {least:.3f}"
    return ""


def _rows(name: str, ways: dict[str, Forward], x: Tensor, rounds: int, seconds: float) -> list[ModelRow]:
    """All ways in turn, "eager" first; once as they are called, once with the GPU never waiting for the host."""
    candidates = {way: [partial(forward, x)] for way, forward in ways.items()}
    called = interleaved(candidates, rounds=rounds, seconds=seconds, queued=False)
    queued = interleaved(candidates, rounds=rounds, seconds=seconds, queued=True)
    return [_row(name, way, len(x), called, queued) for way in ways]


def _row(name: str, way: str, batch: int, called: dict[str, Times], queued: dict[str, Times]) -> ModelRow:
    ms, gpu = median(called[way].gpu), median(queued[way].gpu)
    return ModelRow(
        name,
        way,
        "fp16",
        batch,
        runs=len(called[way].gpu),
        median_ms=ms,
        p90_ms=p90(called[way].gpu),
        gpu_ms=gpu,
        host_ms=median(called[way].host),
        over_eager=median(called["eager"].gpu) / ms,
        over_eager_gpu=median(queued["eager"].gpu) / gpu,
    )


def _compiled(
    name: str, model: nn.Module, ways: dict[str, Forward], x: Tensor, rounds: int, seconds: float
) -> list[ModelRow]:
    """All ways once more, beside torch.compile in its default mode; it is told apart where it fails."""
    way = "torch.compile"
    try:
        compiled: Forward = torch.compile(model)
        rms = differences(compiled(x), model(x))[0]
        rows = _rows(name, {**ways, way: compiled}, x, rounds, seconds)
    except Exception as error:  # of the compiler, of Triton or of CUDA: a peer that fails says so
        return [ModelRow(name, way, "fp16", len(x), failure=told(error))]
    rows[-1].rms_from_eager = rms
    return rows

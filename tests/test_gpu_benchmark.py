# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py as far as a CPU goes: what it counts, judges and writes. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import support
import torch
from click.testing import CliRunner
from small_models import KINDS

from metaformer_export.export.ops.use import Use
from metaformer_export.models import create_model
from metaformer_export.models.family import BuildOptions

ATTENTION = Use(
    "ClusterAttention",
    {"q": (-1, 1, 98, 32), "k": (-1, 1, 98, 32), "v": (-1, 1, 98, 32), "order": (-1, 1, 98)},
    {"cluster_size": 49, "overlap": 20, "scale": 0.2},
)
CLUSTERING = Use("BalancedClustering", {"q": (-1, 2, 196, 32)}, {"cluster_size": 49, "levels": 2})


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return importlib.import_module("gpu")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return importlib.import_module("gpu_kernels")


@pytest.fixture(scope="module")
def models() -> ModuleType:
    return importlib.import_module("gpu_models")


def test_every_operator_is_measured_at_the_sizes_of_the_models(kernels: ModuleType) -> None:
    assert {op_type: [use.size for use in kernels.uses(op_type)] for op_type in kernels.KERNELS} == {
        "GlobalFilter": ["240x14x14", "496x7x7"],
        "BalancedClustering": ["3x3136x32", "6x784x32", "12x196x32"],
        "ClusterAttention": ["3x3136x32", "6x784x32", "12x196x32"],
        "LocalAttention": ["64x56x56", "128x56x56", "128x28x28", "256x28x28", "256x14x14", "512x14x14"],
    }


@pytest.mark.parametrize(
    ("op_type", "index", "batch", "dtype", "moved"),
    [
        # x and y, and 14 x 8 complex numbers in float32 for each channel
        ("GlobalFilter", 0, 256, "fp32", 2 * 256 * 240 * 196 * 4 + 240 * 14 * 8 * 2 * 4),
        ("GlobalFilter", 0, 256, "bf16", 2 * 256 * 240 * 196 * 2 + 240 * 14 * 8 * 2 * 4),
        ("BalancedClustering", 0, 64, "fp32", 64 * 3 * 3136 * (32 * 4 + 8)),
        ("ClusterAttention", 2, 64, "fp16", 64 * 12 * 196 * (4 * 32 * 2 + 8)),
        ("LocalAttention", 0, 64, "fp16", 64 * 64 * 3136 * 4 * 2),
        # every second row of q, and a quarter of the positions of y
        ("LocalAttention", 1, 64, "fp16", 64 * 128 * (2 * 3136 + 28 * 56 + 784) * 2),
    ],
)
def test_bytes_that_must_move(
    op_type: str, index: int, batch: int, dtype: str, moved: int, kernels: ModuleType
) -> None:
    assert kernels.bytes_moved(kernels.uses(op_type)[index], batch, dtype) == moved


def test_shares_of_the_floor_and_ratios_are_of_medians(kernels: ModuleType) -> None:
    timing = importlib.import_module("gpu_timing")
    row = kernels.KernelRow("GlobalFilter", "240x14x14", {}, 256, "fp32")
    times = {
        "kernel": timing.Times([0.04, 0.05, 9.0], [0.1, 0.1, 0.1], late=1),
        "eager": timing.Times([0.2, 0.19, 0.2], [0.3, 0.3, 0.4]),
    }
    kernels.note_times(row, times, moved=96_000_000, bandwidth=3e12)
    assert row.kernel_us == pytest.approx(50)
    assert row.over_eager == pytest.approx(4.0)
    assert row.floor_us == pytest.approx(32)
    assert row.floor_share == pytest.approx(0.64)
    assert (row.runs, row.late, row.eager_host_us, row.missed) == (3, 1, pytest.approx(300), [])


def test_targets_that_are_missed_are_told(kernels: ModuleType) -> None:
    assert kernels.missed("GlobalFilter", 4.0, 0.6) == []
    assert kernels.missed("GlobalFilter", 3.94, 0.594) == [
        "3.9x eager, wanted 4x", "59 % of the floor, wanted 60 %",
    ]  # fmt: skip
    assert kernels.missed("BalancedClustering", 10.1, 0.01) == []
    assert kernels.missed("ClusterAttention", 2.5, 0.9) == ["2.5x eager, wanted 3x"]
    assert kernels.missed("LocalAttention", 0.5, 0.1) is None


def checked(use: Use, kernels: ModuleType, change: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """The check of a kernel that computes what eager does, changed."""
    monkeypatch.setattr(kernels, "DEVICE", "cpu")
    monkeypatch.setattr(
        kernels, "run", lambda kernel, inputs, attributes: change(kernels.EAGER[use.op_type](inputs, attributes))
    )
    row = kernels.KernelRow(use.op_type, use.size, dict(use.attributes), 10, "fp32")
    return row, kernels.check(row, use)


def test_a_kernel_that_computes_something_else_does_not_hold_parity(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, why = checked(ATTENTION, kernels, lambda y: y, monkeypatch)
    assert why == ""
    assert row.rms_from_eager == 0
    assert 1e-8 < row.rms_error == row.eager_rms_error < 1e-6
    row, why = checked(ATTENTION, kernels, lambda y: y + 3e-4 * y.std() * torch.eye(98, 32), monkeypatch)
    assert why.startswith("parity does not hold: root mean square error 3e-05, allowed 1e-05; largest 0.0003")
    for broken in (lambda y: y.where(y < y.max(), torch.nan), lambda y: torch.full_like(y, math.inf)):
        assert checked(ATTENTION, kernels, broken, monkeypatch)[1].startswith("parity does not hold")


def test_a_clustering_that_decides_otherwise_does_not_hold_parity(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, why = checked(CLUSTERING, kernels, lambda order: order, monkeypatch)
    assert (row.same_clusters, row.rms_error, why) == (1.0, None, "")
    _, why = checked(CLUSTERING, kernels, lambda order: order.roll(2, -1), monkeypatch)
    assert why == "parity does not hold: 95.92 % of the tokens are in float64's cluster"
    _, why = checked(CLUSTERING, kernels, lambda order: order.clamp(min=1), monkeypatch)
    assert why == "parity does not hold: the order misses tokens"


def test_an_error_is_told_by_its_cause_in_a_line(kernels: ModuleType) -> None:
    cause = ValueError("operands do not fit\nmore")
    error = RuntimeError("at 34:16:\n    size = 1")
    assert kernels.told(error) == "RuntimeError: at 34:16:"
    error.__cause__ = cause
    assert kernels.told(error) == "ValueError: operands do not fit"
    assert kernels.told(MemoryError()) == "MemoryError: "


def test_a_model_with_kernels_is_judged_with_the_same_clusters(models: ModuleType) -> None:
    eager = models.ParityRow("m", "eager", "fp16", 16, rms_error=0.3, rms_same_clusters=0.004, clusters_alone=0.9)
    kernels = replace(eager, way="kernels", rms_same_clusters=0.009, clusters_alone=0.86)
    assert models.misses(kernels, eager) == ""
    assert models.misses(replace(kernels, rms_same_clusters=0.011), eager) == (
        "parity does not hold: root mean square error 0.011, allowed 0.01"
    )
    assert models.misses(replace(kernels, clusters_alone=0.84), eager) == (
        "parity does not hold: 0.840 of tokens in the same cluster, at least 0.850"
    )
    plain = models.ParityRow("m", "eager", "fp16", 16, rms_error=0.02)
    assert models.misses(replace(plain, way="kernels", rms_error=0.029), plain) == ""
    assert models.misses(replace(plain, way="kernels", rms_error=math.nan), plain) != ""


def test_models_are_those_that_create_model_makes(models: ModuleType) -> None:
    module, variant = models.model_of("acmix_r26")
    want = create_model("acmix_r26").state_dict()
    state = module.state_dict()
    assert list(state) == list(want)
    assert all(torch.equal(state[name], tensor) for name, tensor in want.items())
    assert not module.training
    assert models.pictures(variant, 7).shape == (7, 3, 224, 224)


def test_all_that_a_model_keeps_is_moved(models: ModuleType) -> None:
    family, config = KINDS["boat_swin"]
    model = support.fill_golden(family.build(config, BuildOptions(num_classes=10)))
    there = models.moved(model, "meta", torch.float16)
    kept = [value for module in there.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert len(kept) == 7  # one for each block
    assert {value.device.type for value in (*kept, *there.parameters(), *there.buffers())} == {"meta"}
    assert {parameter.dtype for parameter in there.parameters()} == {torch.float16}
    with models.kept_masks(), torch.inference_mode():
        assert there(torch.empty(2, 3, 224, 224, device="meta", dtype=torch.float16)).shape == (2, 10)


def test_masks_of_shifted_windows_are_made_once(models: ModuleType) -> None:
    windows = importlib.import_module("metaformer_export.models.mixers.window_attention")
    made = windows.shift_mask_like
    x = torch.empty(1, dtype=torch.float64)
    with models.kept_masks():
        first, second = (windows.shift_mask_like(x, 14, 14, 7, 3) for _ in range(2))
        assert first is second
        assert torch.equal(first, made(x, 14, 14, 7, 3))
        assert not torch.equal(first, windows.shift_mask_like(x, 14, 14, 7, 2))
    assert windows.shift_mask_like is made


def report_of(gpu: ModuleType) -> Any:
    return gpu.Report("2026-11-22", "a GPU", "580", {"torch": "2.11"}, ["GlobalFilter"], gpu.FULL, {})


def test_the_report_keeps_what_was_measured_and_says_what_is_wrong(gpu: ModuleType, tmp_path: Path) -> None:
    report = report_of(gpu)
    report.add(gpu.ModelRow("m", "eager", "fp16", 64, median_ms=9.0))
    report.add(gpu.ModelRow("m", "eager", "fp16", 64, median_ms=8.0))
    report.add(gpu.ModelRow("m", "torch.compile", "fp16", 64, failure="it broke"))
    report.add(gpu.KernelRow("GlobalFilter", "240x14x14", {}, 256, "fp16", rms_error=math.nan, failure="no | good"))
    assert [(row.way, row.median_ms) for row in report.models] == [("eager", 8.0), ("torch.compile", None)]
    assert report.broken() == ["GlobalFilter 240x14x14 fp16: no | good"]
    report.failures["m"] = "its process died with exit code -11"
    assert report.broken()[0] == "m: its process died with exit code -11"
    gpu.write(report, tmp_path / "gpu.json")
    saved = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert (saved["gpu"], saved["complete"], saved["kernels"][0]["rms_error"]) == ("a GPU", False, None)
    assert support.files_below(tmp_path) == ["gpu.json"]
    shown = importlib.import_module("document").TABLES["gpu"][1](saved)  # as docs/performance.md has it
    assert shown == gpu.tables(replace(report, kernels=[replace(report.kernels[0], rms_error=None)]))
    assert "torch.compile" in shown


def test_the_tables_show_times_ratios_and_targets(gpu: ModuleType) -> None:
    report = report_of(gpu)
    stride = {"heads": 4, "window": 7, "stride": 2, "scale": 0.2}
    report.add(
        gpu.KernelRow(
            "LocalAttention", "128x56x56", stride, 64, "fp32", rms_error=2e-7, max_error=3e-6, eager_rms_error=4e-7,
            eager_max_error=5e-6, kernel_us=100.04, eager_us=412.0, over_eager=4.12, floor_share=0.305,
        )
    )  # fmt: skip
    report.add(
        gpu.KernelRow(
            "BalancedClustering", "6x784x32", {}, 64, "fp16", same_clusters=0.9995, eager_same_clusters=1.0,
            kernel_us=100.0, eager_us=900.0, over_eager=9.0, floor_share=0.1, missed=["9.0x eager, wanted 10x"],
        )
    )  # fmt: skip
    told = gpu.tables(report)
    assert (
        "| LocalAttention | 128x56x56, stride 2 | 64 | fp32 | 2.0e-07 (max 3.0e-06) | 4.0e-07 (max 5.0e-06) "
        "| 100.0 | 412.0 | 4.12x | 30.5 % |  |"
    ) in told
    assert (
        "| BalancedClustering | 6x784x32 | 64 | fp16 | 99.950 % alike | 100.000 % alike "
        "| 100.0 | 900.0 | 9.00x | 10.0 % | 9.0x eager, wanted 10x |"
    ) in told
    assert "BalancedClustering: 0 of 1 reach 10x eager" in told
    assert "2026-11-22, a GPU, driver 580; torch 2.11; 0 s, not complete" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_nothing_is_measured(gpu: ModuleType, tmp_path: Path) -> None:
    done = CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "gpu.json")])
    assert done.exit_code == 3
    assert done.output == "There is no NVIDIA GPU that PyTorch can use; nothing was measured.\n"
    assert support.files_below(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a part whose process dies")
def test_a_part_that_dies_or_hangs_says_so(gpu: ModuleType) -> None:
    assert list(gpu.in_a_process("GlobalFilter", gpu.QUICK, 100)) == ["its process died with exit code 1"]
    assert list(gpu.in_a_process("GlobalFilter", gpu.QUICK, 0)) == ["not done after 0 s"]

# SPDX-License-Identifier: Apache-2.0
"""plugins: what the mixer ops' kernels need, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import support

from metaformer_export.cli import main
from metaformer_export.export.ops import catalog, surveying
from metaformer_export.models import hornet, registry

ONE = ["plugins", "--arch", "80", "--op", "GlobalFilter"]


@pytest.fixture
def one_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only model is one whose filters are of 124 channels at 7x7."""
    config = replace(support.SMALL, filters=(None, None, None, (7, 4)))
    family = replace(hornet.FAMILY, variants=(support.small_variant("hornet_test_gf", config),), necks=())
    monkeypatch.setattr(registry, "FAMILIES", (family,))


@pytest.mark.usefixtures("one_filter")
def test_the_table_says_what_each_kernel_needs(capsys) -> None:
    assert main(ONE) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.split() == ["op", "size", "type", "GPU", "registers", "shared", "KiB", "spills", "B", "PTX", "kB"]
    assert [row.split()[:4] for row in rows] == [
        ["GlobalFilter", "124x7x7", dtype, "sm_80"] for dtype in ("fp32", "fp16", "bf16")
    ]
    assert max(len(row) for row in (title, *rows)) <= 80
    for row in rows:
        registers, shared, spills, ptx = (float(number) for number in row.split()[4:])
        assert 32 <= registers <= 255
        assert 4 <= shared <= 48
        assert spills == 0
        assert ptx > 10


@pytest.mark.usefixtures("one_filter")
def test_json_has_the_same_with_sizes_and_attributes(capsys) -> None:
    assert main([*ONE, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["refused"] == []
    assert [each["type"] for each in facts["kernels"]] == ["fp32", "fp16", "bf16"]
    first = facts["kernels"][0]
    assert first["op_type"] == "GlobalFilter"
    assert first["shapes"] == {"x": [-1, 124, 7, 7], "weight": [124, 7, 4, 2]}
    assert first["attributes"] == {"height": 7, "width": 7}
    assert (first["architecture"], first["failure"]) == (80, "")
    assert first["needs"]["parameters"] == ["u64", "u64", "u32", "u64"]
    assert first["needs"]["threads"] == 128
    assert first["needs"]["shared_memory"] == 16384
    assert first["needs"]["spills"] == 0
    assert first["needs"]["ptx"] > 100_000
    assert 128 <= first["needs"]["registers"] <= 255


@pytest.mark.usefixtures("one_filter")
def test_a_kernel_that_needs_too_much_is_named_and_exit_code_1(monkeypatch, capsys) -> None:
    monkeypatch.setitem(surveying.SHARED_MEMORY, 80, 12 * 1024)
    assert main([*ONE, "--json"]) == 1
    captured = capsys.readouterr()
    failed = [each for each in json.loads(captured.out)["kernels"] if each["failure"]]
    assert {each["type"] for each in failed} == {"fp32"}
    lines = [line for line in captured.err.splitlines() if line.startswith("metaformer-export: ")]
    assert lines == [
        "metaformer-export: GlobalFilter 124x7x7 fp32 on sm_80 cannot run: "
        "it needs 16 KiB of shared memory, and the GPU has 12 KiB"
    ]


@pytest.mark.usefixtures("one_filter")
def test_a_map_that_the_kernel_refuses_is_a_note(monkeypatch, capsys) -> None:
    (family,) = registry.FAMILIES
    large = tuple(replace(variant, image_size=8 * variant.image_size) for variant in family.variants)
    monkeypatch.setattr(registry, "FAMILIES", (replace(family, variants=large),))
    assert main(ONE) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert captured.err.splitlines()[-1] == (
        "note: no kernel for GlobalFilter 124x56x56: GlobalFilter's kernel takes maps of at most 32x32, got 56x56."
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--arch", "75"), "--arch takes any of 80,86,89,90,100; got '75'."),
        (("--arch", "80,sm_90"), "--arch takes any of 80,86,89,90,100; got 'sm_90'."),
        (("--arch", ""), "--arch takes any of 80,86,89,90,100; got ''."),
        (("--op", "Softmax"), "--op takes a mixer op with a kernel, GlobalFilter"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(arguments: tuple[str, str], expected: str, capsys) -> None:
    assert main(["plugins", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err.splitlines()[-1]
    assert error.startswith("metaformer-export: error: ")
    assert expected in error


def test_an_op_without_a_kernel_is_refused(monkeypatch, capsys) -> None:
    without = tuple(replace(op, kernel=None) if op.op_type == "LocalAttention" else op for op in catalog.OPS)
    monkeypatch.setattr(catalog, "OPS", without)
    assert main(["plugins", "--op", "LocalAttention"]) == 2
    assert "got 'LocalAttention'." in capsys.readouterr().err


@pytest.mark.usefixtures("one_filter")
def test_without_triton_it_is_one_line_and_exit_code_3(tmp_path: Path, monkeypatch, capsys) -> None:
    """The package is shadowed in the processes that compile, which are started with this one's path."""
    (tmp_path / "triton.py").write_text("raise ImportError('no triton here')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(ONE) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == (
        'metaformer-export: error: Triton is not installed; pip install "metaformer-export[tensorrt]".'
    )


def test_ctrl_c_is_one_line(tmp_path: Path, monkeypatch) -> None:
    """As a terminal sends it: to all processes of the command."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # so that there is something to do
    process = subprocess.Popen(
        [sys.executable, "-m", "metaformer_export", *ONE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until_a_kernel_is_begun(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert errors.splitlines()[-1] == "metaformer-export: error: interrupted; nothing half-written is left."
    assert "Traceback" not in errors


def until_a_kernel_is_begun(process: subprocess.Popen[str], cache: Path) -> None:
    """Triton makes a folder for each kernel."""
    end = time.monotonic() + 60
    while not any(cache.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)

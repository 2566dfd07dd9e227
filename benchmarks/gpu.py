# SPDX-License-Identifier: Apache-2.0
"""The mixer ops' kernels on an NVIDIA GPU, without TensorRT: parity, times, and what they make of whole models.

    python benchmarks/gpu.py --out docs/performance/gpu.json
    python benchmarks/gpu.py --quick GlobalFilter hornet_t_gf

The package need not be installed, and onnx neither; a link named metaformer_export to this repository will do:

    mkdir -p /tmp/src && ln -sfn $PWD /tmp/src/metaformer_export && PYTHONPATH=/tmp/src python benchmarks/gpu.py

It takes about eight minutes. Every operator and every model has a process of its own, so that a kernel that fails
does not take the others along, and what was measured is written as it comes. Exit code 1: something does not hold
parity or failed; 3: there is no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import torch
from gpu_kernels import DTYPES, MODELS, TARGETS, KernelRow
from gpu_kernels import measure as measured_kernels
from gpu_models import ModelRow, ParityRow
from gpu_models import measure as measured_models
from gpu_tables import kernel_table, line_of, model_table, parity_table, verdicts
from swapped import KERNELS

PARTS = (*KERNELS, *MODELS)
_PART_S = 200.0
"""The longest that one part may take."""
_NO_GPU, _INTERRUPTED = 3, 130
_PACKAGES = ("torch", "triton", "numpy")

Row = KernelRow | ParityRow | ModelRow


@dataclass(frozen=True)
class Settings:
    """How much is measured: types of the kernels' tensors, rounds and seconds of each comparison, torch.compile."""

    dtypes: tuple[str, ...]
    rounds: int
    seconds: float
    compiled: bool


FULL = Settings(tuple(DTYPES), rounds=30, seconds=1.0, compiled=True)
QUICK = Settings(("fp32", "fp16"), rounds=5, seconds=0.2, compiled=False)


@dataclass
class Report:
    """What is written with --out. `failures` are of parts that ended before their time, by name."""

    date: str
    gpu: str
    driver: str
    versions: dict[str, str]
    parts: list[str]
    settings: Settings
    targets: dict[str, dict[str, float | None]]
    seconds: float = 0.0
    complete: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    kernels: list[KernelRow] = field(default_factory=list)
    parity: list[ParityRow] = field(default_factory=list)
    models: list[ModelRow] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Put a row to its kind; times of a model that come again take the place of the earlier ones."""
        if isinstance(row, KernelRow):
            self.kernels.append(row)
        elif isinstance(row, ParityRow):
            self.parity.append(row)
        else:
            self.models = [each for each in self.models if (each.model, each.way) != (row.model, row.way)]
            self.models.append(row)

    def broken(self) -> list[str]:
        """What failed or does not hold parity. torch.compile is a peer, and may fail."""
        found = [f"{part}: {why}" for part, why in self.failures.items()]
        ours = [*self.kernels, *self.parity, *(row for row in self.models if row.way != "torch.compile")]
        return found + [f"{line_of(row)}" for row in ours if row.failure]


def rows_of(part: str, settings: Settings) -> Iterator[Row]:
    """What one part measures, in this process."""
    torch.backends.cudnn.allow_tf32 = False  # float32 convolutions are the yardstick of float32 kernels
    if part in KERNELS:
        yield from measured_kernels(part, settings.dtypes, settings.rounds, settings.seconds)
    else:
        yield from measured_models(part, settings.rounds, settings.seconds, settings.compiled)


def work(part: str, settings: Settings, pipe: Connection) -> None:
    """Send every row of a part as soon as it is measured: the whole of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the first one ends the others
    for row in rows_of(part, settings):
        pipe.send(row)


def in_a_process(part: str, settings: Settings, seconds: float) -> Iterator[Row | str]:
    """The rows of a part as they come; at the end, why there are no more of them, if the process did not end well."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(part, settings, theirs), daemon=True)
    process.start()
    theirs.close()
    end = time.monotonic() + seconds
    try:
        while ours.poll(max(end - time.monotonic(), 0)):
            yield ours.recv()
        yield f"not done after {seconds:.0f} s"
    except EOFError:
        process.join()
        if process.exitcode:
            yield f"its process died with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def measure(report: Report, seconds: float, out: Path | None) -> None:
    """Every part in turn; the report is written after every row."""
    began = time.monotonic()
    for part in report.parts:
        left = seconds - (time.monotonic() - began)
        if left <= 0:
            report.failures[part] = f"not begun after {seconds:.0f} s"
            continue
        for row in in_a_process(part, report.settings, min(left, _PART_S)):
            if isinstance(row, str):
                report.failures[part] = row
            else:
                report.add(row)
            report.seconds = round(time.monotonic() - began, 1)
            told = f"{part}: {row}" if isinstance(row, str) else line_of(row)
            click.echo(f"{report.seconds:6.1f} s  {told}", err=True)
            write(report, out)
    report.complete = not report.failures
    write(report, out)


def write(report: Report, out: Path | None) -> None:
    """As JSON, whole or not at all."""
    if out is not None:
        part = out.with_name(out.name + ".part")
        part.write_text(json.dumps(finite(asdict(report)), indent=2) + "\n", encoding="utf-8")
        part.replace(out)


def finite(value: Any) -> Any:
    """Plain data whose numbers JSON has: null for those that are none."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def missing() -> str:
    """Why nothing can be measured here, or ""."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, in which the kernels are written; nothing was measured."
    if not torch.cuda.is_available():
        return "There is no NVIDIA GPU that PyTorch can use; nothing was measured."
    return ""


def driver() -> str:
    """Version of NVIDIA's driver, as nvidia-smi says it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def versions() -> dict[str, str]:
    """Of what takes part; torch names its CUDA, too."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is not None:
            found[name] = torch.__version__ if name == "torch" else metadata.version(name)
    return found


def tables(report: Report) -> str:
    """All that was measured, and what is wrong."""
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    state = "complete" if report.complete else "not complete"
    parts = [f"{report.date}, {report.gpu}, driver {report.driver}; {packages}; {report.seconds:.0f} s, {state}", ""]
    parts += [kernel_table(report.kernels), *verdicts(report.kernels), ""] if report.kernels else []
    parts += [parity_table(report.parity)] if report.parity else []
    parts += [model_table(report.models)] if report.models else []
    return "\n".join(parts + report.broken())


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--out", type=click.Path(path_type=Path), help="JSON, written after every row.")
@click.option("--quick", is_flag=True, help="Few runs of float32 and float16, no torch.compile: a first look.")
@click.option("--no-compile", is_flag=True, help="Leave torch.compile out, which takes a minute or two.")
@click.option("--seconds", type=float, default=480.0, show_default=True, help="What is not done by then is left out.")
def main(parts: tuple[str, ...], out: Path | None, quick: bool, no_compile: bool, seconds: float) -> None:
    """Measure PARTS, operators and models: all of them if none is named."""
    if why := missing():
        click.echo(why, err=True)
        sys.exit(_NO_GPU)
    settings = QUICK if quick else replace(FULL, compiled=not no_compile)
    today, targets = datetime.now(UTC).date().isoformat(), {name: asdict(each) for name, each in TARGETS.items()}
    report = Report(today, torch.cuda.get_device_name(), driver(), versions(), list(parts or PARTS), settings, targets)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was measured is shown then, too
    try:
        measure(report, seconds, out)
    except KeyboardInterrupt:
        click.echo(tables(report))
        sys.exit(_INTERRUPTED)
    click.echo(tables(report))
    sys.exit(1 if report.broken() else 0)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""How long an export takes and how much memory it needs: the real command, stage by stage.

    python benchmarks/export_time.py hornet_t boat_cswin_t hornet_l_gf
    python benchmarks/export_time.py --option --fp16 --out export_time.json hornet_l_gf

Each model is exported by `metaformer-export --model NAME` in a process of its own, into a folder that is
deleted afterwards, and must pass parity. The seconds of the stages are those that the command prints;
processor time is that of all its threads, which a busy machine distorts less. Peak memory is the largest
resident set of the process less that of one that only imports what an export imports, and stands beside
the model's weights in float32. Which stage had how much is sampled (Linux only), so that short peaks may
be missed there, not in the total.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click
from chosen import LARGE, MODELS

from metaformer_export.report import versions
from metaformer_export.runtime.bench import machine
from metaformer_export.runtime.threads import available_threads

STAGE = re.compile(r"(\w+) +(\d+\.\d) s\b")
"""How the command reports a finished stage; the lines of its steps are indented."""
_IMPORT = (
    "import metaformer_export.pipeline, torch.onnx._internal.exporter._core, torch._dynamo, torch.export._trace, "
    "torch._export.non_strict_utils, onnxscript.function_libs.torch_lib.ops, onnxscript.optimizer, "
    "onnxscript.rewriter.onnx_fusions, openvino"
)
"""All but a few of the modules that an export has loaded when it ends."""
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_SAMPLE_S = 0.02
_MB = 1e6


@dataclass(frozen=True)
class Run:
    """A finished process: its memory at the highest, and what it said on stderr with the time and memory by stage."""

    code: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    stderr: str
    stages: dict[str, float] = field(default_factory=dict)
    stage_peaks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One export. Peaks are above those of a process that only imports."""

    model: str
    nodes: int
    weights_bytes: int
    wall_seconds: float
    cpu_seconds: float
    stages: dict[str, float]
    peak_bytes: int
    peak_over_weights: float
    stage_peaks: dict[str, int]


@dataclass
class Report:
    """What is written with --out."""

    date: str
    machine: str
    threads: int
    versions: dict[str, str]
    options: tuple[str, ...]
    import_bytes: int
    rows: list[Row] = field(default_factory=list)


def measured(command: Sequence[str], tell: Callable[[str], None] | None = None) -> Run:
    """Run a command to its end, its stages timed by the lines that it writes."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = _Peak(process.pid)
    stages: dict[str, float] = {}
    peaks: dict[str, int] = {}
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        if tell is not None:
            tell(line.rstrip())
        if found := STAGE.match(line):
            stages[found[1]], peaks[found[1]] = float(found[2]), peak.taken()
    _, status, usage = os.wait4(process.pid, 0)
    peak.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(
        code=process.returncode,
        wall_seconds=time.perf_counter() - started,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * _RSS_UNIT,
        stderr="".join(lines),
        stages=stages,
        stage_peaks=peaks if peak.readable else {},
    )


class _Peak:
    """The largest resident set of a process since it was last asked for, by looking often."""

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/statm")
        self.readable = self._file.exists()
        self._largest = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self.readable:
            self._thread.start()

    def taken(self) -> int:
        """Bytes; the next answer is about the time from now on."""
        largest, self._largest = self._largest, 0
        return largest

    def stop(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            try:
                pages = int(self._file.read_text(encoding="ascii").split()[1])
            except (OSError, IndexError):
                return
            self._largest = max(self._largest, pages * resource.getpagesize())


def imports() -> int:
    """Peak bytes of a process that imports what an export needs, and does nothing."""
    run = measured([sys.executable, "-c", _IMPORT])
    if run.code:
        raise SystemExit(f"the package does not import:\n{run.stderr}")
    return run.peak_bytes


def measure(model: str, options: Sequence[str], base: int) -> Row:
    """Export one model; SystemExit if the command fails or parity does not hold."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        command = [sys.executable, "-m", "metaformer_export", "--model", model, *options, "--output", str(folder)]
        run = measured(command, lambda line: click.echo(f"  {line}", err=True))
        if run.code:
            raise SystemExit(f"{model}: exit code {run.code}\n{run.stderr}")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    weights = 4 * manifest["model"]["parameters"]
    return Row(
        model=model,
        nodes=manifest["graphs"]["model.onnx"]["nodes"],
        weights_bytes=weights,
        wall_seconds=run.wall_seconds,
        cpu_seconds=run.cpu_seconds,
        stages=run.stages,
        peak_bytes=run.peak_bytes - base,
        peak_over_weights=(run.peak_bytes - base) / weights,
        stage_peaks={stage: max(0, peak - base) for stage, peak in run.stage_peaks.items()},
    )


def markdown(report: Report) -> str:
    """The rows as a table; in the cell of a stage its seconds and, in brackets, its peak in MB."""
    stages = list(dict.fromkeys(stage for row in report.rows for stage in row.stages))
    head = ["model", "nodes", "weights MB", "seconds", "CPU s", "peak MB", "peak / weights", *stages]
    lines = [
        f"{report.date}, {report.machine}, {report.threads} threads, "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "",
        f"`metaformer-export --model NAME {' '.join(report.options)}`".replace(" `", "`")
        + f"; peaks are above the {report.import_bytes / _MB:.0f} MB of a process that only imports; "
        "stages: seconds (peak MB).",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in report.rows:
        cells = [
            row.model,
            str(row.nodes),
            f"{row.weights_bytes / _MB:.0f}",
            f"{row.wall_seconds:.1f}",
            f"{row.cpu_seconds:.1f}",
            f"{row.peak_bytes / _MB:.0f}",
            f"{row.peak_over_weights:.1f}x",
            *(_stage_cell(row, stage) for stage in stages),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _stage_cell(row: Row, stage: str) -> str:
    seconds, peak = row.stages.get(stage), row.stage_peaks.get(stage)
    if seconds is None:
        return ""
    return f"{seconds:.1f}" if peak is None else f"{seconds:.1f} ({peak / _MB:.0f})"


@click.command()
@click.argument("models", nargs=-1)
@click.option("--option", "options", multiple=True, help="Passed on to metaformer-export; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the report as JSON.")
def main(models: tuple[str, ...], options: tuple[str, ...], out: Path | None) -> None:
    """Export MODELS (one tiny and one large one of each family if none is named), and say what each stage took."""
    report = Report(
        datetime.now(UTC).date().isoformat(), machine(), available_threads(), versions(), options, imports()
    )
    for model in models or (*MODELS, *LARGE):
        click.echo(f"{model}:", err=True)
        report.rows.append(measure(model, options, report.import_bytes))
        if out is not None:  # after each, because an export takes minutes
            out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    click.echo(markdown(report))


if __name__ == "__main__":
    sys.exit(main())

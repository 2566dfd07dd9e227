# SPDX-License-Identifier: Apache-2.0
"""manifest.json, the JSON reports and report.html."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from . import remarks
from .artifacts import BenchReport, Converted, ExportResult, Lowered, Manifest, OutputParity, ParityReport
from .calibration.images import ImageSet
from .export.graph import is_gelu_by_tanh, module_of
from .models.checkpoints import sha256_of
from .options import ExportOptions
from .output import MANIFEST, TOOL
from .version import __version__

FORMAT = 1
"""Version of the manifest's layout; it grows when a field changes its meaning."""
STATUS_BEFORE_ENGINE = "status_before_engine"
"""Key of the manifest, where only the engine failed, and a better one restores the status."""
_PACKAGES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-cu13",
    "tensorrt",
    "polygraphy",
    "triton",
    "numpy",
    "pillow",
)


def to_json(value: Any) -> str:
    """A dataclass or plain value as indented JSON; NaN and infinities become null, which JSON has."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(_finite(plain), indent=2, default=str, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Installed versions of what takes part in an export."""
    found = {"metaformer-export": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def manifest_of(
    result: ExportResult,
    graphs: Mapping[str, tuple[Converted, Lowered]],
    images: ImageSet,
    options: ExportOptions,
) -> Manifest:
    """What was made, from what and how; its `outputs` are what `outputs_of` finds once all are written.

    Args:
        graphs: what each file was made from.
    """
    return Manifest(
        {
            "tool": TOOL,
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": list(options.command),
            "status": "passed" if result.passed else "failed",
            **({STATUS_BEFORE_ENGINE: "passed"} if result.lacks_only_an_engine else {}),
            "model": dataclasses.asdict(result.spec),
            "batch": dataclasses.asdict(options.batch),
            "inputs": _inputs(result, images),
            "outputs": {},
            "precision": _precision(result, graphs, options),
            "graphs": {name: _graph(*pair) for name, pair in graphs.items()},
            "versions": versions(),
            "target": options.target,
            "lowering": dict(options.lowering),
            "triton": options.triton,
            "candidates": [dataclasses.asdict(each) for each in result.bench.candidates],
            "choice": None if result.bench.choice is None else dataclasses.asdict(result.bench.choice),
            "machine": result.bench.machine,
            "gpu": None if result.engine is None else result.engine.gpu,
            "tensorrt": None if result.engine is None else result.engine.told(),
            "notes": list(result.notes),
        }
    )


def outputs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and bytes of every file but the manifest, by its path below the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    sums: dict[int, str] = {}  # a model in the repository is the same file
    for path in files:
        inode = path.stat().st_ino
        sums[inode] = sums.get(inode) or sha256_of(path)
    return {
        path.relative_to(folder).as_posix(): {"sha256": sums[path.stat().st_ino], "bytes": path.stat().st_size}
        for path in files
    }


def _inputs(result: ExportResult, images: ImageSet) -> dict[str, Any]:
    files = zip(images.names, images.sha256, strict=True)
    digest = result.spec.checkpoint_sha256
    return {
        "checkpoint": None if digest is None else {"file": result.spec.weights, "sha256": digest},
        "images": [{"file": file, "sha256": sha256} for file, sha256 in files],
    }


def _precision(
    result: ExportResult, graphs: Mapping[str, tuple[Converted, Lowered]], options: ExportOptions
) -> dict[str, Any]:
    return {
        "requested": result.precision,
        "io": options.io,
        "layers": {name: converted.layers for name, (converted, _) in graphs.items()},
        "kept_in_fp32": {
            name: [dataclasses.asdict(kept) for kept in converted.kept] for name, (converted, _) in graphs.items()
        },
    }


def _graph(converted: Converted, lowered: Lowered) -> dict[str, Any]:
    graph = converted.model.graph
    return {
        "form": lowered.form,
        "opset": converted.model.opset_imports[""],
        "nodes": graph.num_nodes(),
        "gelus_by_tanh": [module_of(node) for node in graph if is_gelu_by_tanh(node)],
        "passes": [dataclasses.asdict(record) for record in lowered.passes],
    }


def summary(result: ExportResult) -> dict[str, Any]:
    """What `--json` prints: where things are and what was achieved."""
    return {
        "model": result.spec.name,
        "neck": result.spec.neck,
        "precision": result.precision,
        "folder": str(result.folder),
        "files": {name: entry["bytes"] for name, entry in result.manifest.content["outputs"].items()},
        "parity": dataclasses.asdict(result.parity),
        "bench": dataclasses.asdict(result.bench),
        "notes": list(result.notes),
    }


def to_html(result: ExportResult) -> str:
    """One self-contained page with the parity and timing tables."""
    parity = _outputs_table(result.parity.outputs) + _clusters(result.parity)
    bench = _table(
        ("runtime", "precision", "batch", "median ms", "p90 ms", "GPU ms", "against eager"),
        [
            (
                r.runtime,
                r.precision,
                r.batch,
                f"{r.median_ms:.2f}",
                f"{r.p90_ms:.2f}",
                "-" if r.gpu_ms is None else f"{r.gpu_ms:.2f}",
                f"{r.speedup_over_eager:.2f}x",
            )
            for r in result.bench.results
        ],
    )
    height, width = result.spec.image_size
    neck = f" + {result.spec.neck}" if result.spec.neck else ""
    title = f"{result.spec.name}{neck}, {result.precision}, {height}x{width}"
    verdict = "holds" if result.parity.passed else "failed: " + "; ".join(result.parity.failures)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in result.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse}}td,th{{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:right}}
td:first-child,th:first-child{{text-align:left}}</style></head><body>
<h1>{html.escape(title)}</h1>
<h2>Parity with eager PyTorch: {html.escape(verdict)}</h2>
<p>{result.parity.images} images ({html.escape(result.parity.image_source)}), batches
{", ".join(map(str, result.parity.batches))}; worst of: {html.escape("; ".join(result.parity.methods))}.</p>
{parity}
<h2>Ways to run it here</h2>
{_candidates(result.bench)}
<h2>Latency</h2>
<p>{html.escape(result.bench.machine)}, {result.bench.threads} threads, medians of {result.bench.iterations}
interleaved rounds.</p>
{bench}
<h2>Notes</h2><ul>{notes}</ul>
</body></html>
"""


def _outputs_table(outputs: tuple[OutputParity, ...]) -> str:
    return _table(
        ("output", "max error", "max / std", "rms / std", "cosine", "top-1", "top-5"),
        [
            (o.name, f"{o.max_abs:.3g}", f"{o.max_rel:.2e}", f"{o.rms_rel:.2e}", f"{o.cosine:.7f}",
             f"{100 * o.top1_agreement:.0f} %", f"{100 * o.top5_agreement:.0f} %")
            for o in outputs
        ],
    )  # fmt: skip


def _candidates(bench: BenchReport) -> str:
    """What was tried, and what to take."""
    table = _table(
        ("runtime", "precision", "file", "rms / std", "cosine", "verdict"),
        [
            (c.runtime, c.precision, c.file or "float32 form, not in the folder",
             *(("", "") if c.rms_rel is None or c.cosine is None else (f"{c.rms_rel:.2e}", f"{c.cosine:.7f}")),
             "holds" if c.passed else "; ".join(c.failures))
            for c in bench.candidates
        ],
    )  # fmt: skip
    if bench.choice is None:
        return table
    settings = ", ".join(f"{name}={value}" for name, value in bench.choice.settings.items())
    chosen = f"{remarks.choice_line(bench.choice, bool(bench.unstable))}. Settings: {settings}."
    return f"{table}<p>{html.escape(chosen)}</p>"


def _clusters(parity: ParityReport) -> str:
    """For a model that clusters: its arithmetic and its decisions."""
    if parity.cluster_agreement is None:
        return ""
    nodes = [
        (n.module, *(f"{100 * share:.1f} %" for share in (n.min, n.mean, n.alone, n.lent)))
        for n in parity.cluster_agreement.nodes
    ]
    added = ", ".join(f"{name} {rms:.2e}" for name, rms in parity.changed_clusters.items())
    return f"""<p>The table above is of the files as they run. This model sorts tokens into clusters, and rounding
decides some of them; the verdict is on what follows: the arithmetic, when the files are given eager's clusters, and
each clustering by itself.</p>
<h3>With eager's clusters</h3>
{_outputs_table(parity.same_clusters)}
<p>What clusters of its own add to the error, as rms / std: {html.escape(added)}.</p>
<h3>Tokens in eager's cluster</h3>
<p>As it runs (least and mean over the images), and alone, after eager's clusterings before it (mean, at least
{100 * parity.thresholds["clusters_alone"]:g} %; of the tokens lent to the neighbour, at least
{100 * parity.thresholds["clusters_lent"]:g} %).</p>
{_table(("clustering", "least", "mean", "alone", "lent tokens"), nodes)}"""


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value

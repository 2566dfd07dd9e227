# SPDX-License-Identifier: Apache-2.0
"""Does every variant go through, and does it hold? One row for each.

    python benchmarks/coverage.py --out docs/coverage.md

Every model gets its seeded random weights, is traced, lowered and run in ONNX Runtime on three of
the photographs that come with the package: in float32, and in float16 with every tensor rounded.
Thresholds are those of `metaformer-export`; a clustering model is held to them with eager's
clusters, as there. A row that does not pass is marked, and the exit code is 1.

A row runs in a process of its own. Rows are kept in a JSON file beside the table, so that an interrupted
run goes on where it was with --resume.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
import torch

from metaformer_export.artifacts import Converted, ParityReport
from metaformer_export.calibration.images import ImageSet, load_images
from metaformer_export.export.lower import check, lower
from metaformer_export.export.precision import convert
from metaformer_export.export.serialize import ModelFile, apart, serialize, skeleton
from metaformer_export.export.trace import trace
from metaformer_export.models import registry
from metaformer_export.models.loading import LoadedModel, load_model
from metaformer_export.report import versions
from metaformer_export.runtime import bench, clustering_parity, onnxruntime, parity
from metaformer_export.runtime.clustering import Clusterings, EagerDecisions, decisions
from metaformer_export.runtime.observe import largest_magnitudes, rounded
from metaformer_export.runtime.threads import available_threads

IMAGES = 3
ALONE = 1e-5
"""Largest difference between an image alone and in a batch of three, over the spread of eager's output."""


@dataclass(frozen=True)
class Row:
    """One variant. Errors are over the standard deviation of eager's output.

    Attributes:
        date: when it was measured.
    """

    name: str
    short_name: str
    family: str
    parameters: int
    nodes: int
    fp32_max: float
    fp16_max: float
    fp16_rms: float
    alone: float
    clusters_fp32: float | None
    clusters_fp16: float | None
    export_seconds: float
    bytes: int
    failures: tuple[str, ...]
    date: str = ""


def measure(name: str) -> Row:
    """Take one variant through and hold it against eager."""
    torch.set_num_threads(available_threads())
    loaded = load_model(name)
    images = load_images(None, loaded.spec)
    images = replace(images, batch=images.batch[:IMAGES], names=images.names[:IMAGES], sha256=images.sha256[:IMAGES])
    started = time.perf_counter()
    lowered = lower(trace(loaded.module, loaded.spec), "portable")
    file = apart(lowered.model)
    check(skeleton(file))
    seconds = time.perf_counter() - started
    eager = EagerDecisions(loaded.module)
    fp32 = _proof(eager, convert(lowered, "fp32"), loaded, images)
    alone = _alone(file, lowered.model, eager, images)
    peaks = largest_magnitudes(lowered, images.batch, available_threads())
    fp16 = _proof(eager, convert(lowered, "fp16", max_abs=peaks), loaded, images)
    failures = [f"fp32: {text}" for text in fp32.failures] + [f"fp16: {text}" for text in fp16.failures]
    failures += [f"alone {alone:.1e} is above {ALONE}"] if not alone <= ALONE else []
    return Row(
        name=loaded.spec.name,
        short_name=loaded.spec.short_name,
        family=loaded.spec.family,
        parameters=loaded.spec.parameters,
        nodes=lowered.model.graph.num_nodes(),
        fp32_max=_judged(fp32, "max_rel"),
        fp16_max=_judged(fp16, "max_rel"),
        fp16_rms=_judged(fp16, "rms_rel"),
        alone=alone,
        clusters_fp32=fp32.cluster_agreement.mean if fp32.cluster_agreement else None,
        clusters_fp16=fp16.cluster_agreement.mean if fp16.cluster_agreement else None,
        export_seconds=seconds,
        bytes=len(file.graph) + sum(array.nbytes for array in file.weights.values()),
        failures=tuple(failures),
    )


def _proof(eager: EagerDecisions, converted: Converted, loaded: LoadedModel, images: ImageSet) -> ParityReport:
    model = converted.model if converted.precision == "fp32" else rounded(converted)
    names = loaded.spec.outputs
    candidates = {"model.onnx": partial(_open, serialize(model))}
    proof = parity.compare(eager.outputs, candidates, images, converted.precision, names, classifier=True)
    if not decisions(model.graph):
        return proof
    clusterings = {"model.onnx": Clusterings(lambda: model, available_threads()).open}
    return clustering_parity.weigh(proof, eager, clusterings, images, classifier=True)


def _alone(file: ModelFile, model: ir.Model, eager: EagerDecisions, images: ImageSet) -> float:
    """How far an image's output in a batch of three is from its output alone, over the spread."""
    nodes = decisions(model.graph)
    outputs, orders = eager(images.batch)
    session = Clusterings(lambda: model, available_threads()).open()[0] if nodes else _open(file)
    given = [{node: orders[node][i : i + 1] for node in nodes} for i in range(IMAGES)]
    whole = session(images.batch, {node: orders[node] for node in nodes})[0]
    single = [session(images.batch[i : i + 1], given[i])[0] for i in range(IMAGES)]
    return float(np.abs(np.concatenate(single) - whole).max() / outputs[0].std())


def _open(file: ModelFile) -> onnxruntime.Session:
    return onnxruntime.open_session(file, threads=available_threads())


def _judged(proof: ParityReport, figure: str) -> float:
    """The figure that the verdict rests on, the worst of all outputs."""
    return max(float(getattr(output, figure)) for output in proof.same_clusters or proof.outputs)


def markdown(rows: list[Row], made: dict[str, str]) -> str:
    """The table with what it says."""
    limits = parity.THRESHOLDS
    head = [
        "# Coverage",
        "",
        "Every variant, exported with seeded random weights whose every branch is alive, and run in ONNX Runtime on "
        f"{IMAGES} photographs against eager PyTorch. Made by `python benchmarks/coverage.py --out docs/coverage.md`",
        f"on {made['date']}, {made['machine']}, {made['versions']}.",
        "",
        "`fp32` is the largest error over the standard deviation of eager's output "
        f"(at most {limits['fp32'].max_rel:g}); `fp16` likewise, with every tensor rounded "
        f"(largest at most {limits['fp16'].max_rel:g}, rms at most {limits['fp16'].rms_rel:g}).",
        f"`alone` is how far an image in a batch of three is from the same image alone (at most {ALONE:g}).",
        "Models that cluster are held to this with eager's clusters; `clusters` is the share of tokens that the",
        "export, running freely, puts into eager's cluster, in fp32 and in fp16.",
        "`export` is trace, lower and check, in seconds on that (busy) machine. A row of another day says so.",
        "",
        "| variant | parameters | nodes | fp32 max | fp16 max | fp16 rms | alone | clusters | export | model.onnx | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    return "\n".join([*head, *(_line(row, made["date"]) for row in rows)]) + "\n"


def _line(row: Row, today: str) -> str:
    clusters = "" if row.clusters_fp32 is None else f"{100 * row.clusters_fp32:.1f}, {100 * row.clusters_fp16:.1f} %"
    cells = [
        row.short_name,
        f"{row.parameters / 1e6:.1f} M",
        str(row.nodes),
        f"{row.fp32_max:.1e}",
        f"{row.fp16_max:.1e}",
        f"{row.fp16_rms:.1e}",
        f"{row.alone:.1e}",
        clusters,
        f"{row.export_seconds:.0f} s",
        f"{row.bytes / 1e6:.0f} MB",
        ("passes" if not row.failures else "FAILS: " + "; ".join(row.failures))
        + (f", {row.date}" if row.date not in ("", today) else ""),
    ]
    return "| " + " | ".join(cells) + " |"


def row_in_a_process(name: str) -> Row:
    """One row, in memory that is given back."""
    command = [sys.executable, __file__, "--row", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: the row's process ended with {done.returncode}; what is done so far is kept.")
    return _row(json.loads(done.stdout))


def _row(content: dict[str, object]) -> Row:
    return Row(**{**content, "failures": tuple(content["failures"])})  # type: ignore[arg-type]


@click.command()
@click.argument("models", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="The table; rows go beside it as .json.")
@click.option(
    "--resume", is_flag=True, help="Keep the rows that are there. (Those of models not named are always kept.)"
)
@click.option("--row", help="Print one row as JSON and stop.")
def main(models: tuple[str, ...], out: Path | None, resume: bool, row: str | None) -> int:
    """Take MODELS, or every variant, through the export and hold each against eager."""
    if row:
        click.echo(json.dumps(asdict(measure(row))))
        return 0
    names = [variant.name for _, variant in registry.variants()]
    wanted = [registry.find(model)[1].name for model in models] or names
    kept = out.with_suffix(".json") if out else None
    rows = {}
    if (resume or models) and kept and kept.exists():
        before = json.loads(kept.read_text("utf-8"))
        rows = {each["name"]: _row({"date": before["date"], **each}) for each in before["rows"]}
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    made = {"date": datetime.now(UTC).date().isoformat(), "machine": bench.machine(), "versions": used}
    todo = [name for name in wanted if not (resume and name in rows)]
    for i, name in enumerate(todo, start=1):
        started = time.perf_counter()
        rows[name] = replace(row_in_a_process(name), date=made["date"])
        verdict = "; ".join(rows[name].failures) or "passes"
        click.echo(f"{i}/{len(todo)} {name}: {verdict} ({time.perf_counter() - started:.0f} s)", err=True)
        done = [rows[each] for each in names if each in rows]
        if out and kept:
            kept.write_text(json.dumps({**made, "rows": [asdict(each) for each in done]}, indent=1) + "\n", "utf-8")
            out.write_text(markdown(done, made), encoding="utf-8")
    done = [rows[each] for each in names if each in rows]
    if not out:
        click.echo(markdown(done, made))
    return int(any(each.failures for each in done))


if __name__ == "__main__":
    sys.exit(main(standalone_mode=False))

# SPDX-License-Identifier: Apache-2.0
"""A Triton Inference Server under load: encoded photographs in, classes out, with and without dynamic batching.

    python benchmarks/serving.py --server .venv/tritonserver/bin/tritonserver --out docs/performance/serving.json

Exports a model of seeded random weights whose every branch is alive, adds it to two repositories of the python backend,
one of them without dynamic batching of the model, and starts a server of each on the loopback address. Only if both
give eager's classes and scores for the photographs that come with the package, clients of one request at a time ask
them, in turns of a few seconds; the servers' own statistics say in which batches the model ran.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from metaformer_export import create_model
from metaformer_export.calibration.images import load_images, shipped
from metaformer_export.console import ConsoleProgress
from metaformer_export.delivered import read_spec
from metaformer_export.deploying import deploy
from metaformer_export.options import ExportOptions
from metaformer_export.pipeline import run_export
from metaformer_export.report import versions
from metaformer_export.runtime import bench, eager
from metaformer_export.runtime.triton import schema
from metaformer_export.runtime.triton.launching import ServerOptions, command_line
from metaformer_export.runtime.triton.needs import Needs
from metaformer_export.runtime.triton.options import RepositoryOptions
from metaformer_export.runtime.triton.server import started

MAX_ERROR = 1e-4
"""Of a score, a probability."""
_TURN = 5.0
_READY_S = 120.0


@dataclass(frozen=True)
class Side:
    """A server, and how its model batches."""

    batching: str
    address: str


@dataclass
class Load:
    """What clients saw of one server at one concurrency: milliseconds of each answer, and why others failed."""

    milliseconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    sent: int = 0
    seconds: float = 0.0
    batches: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Row:
    """One line of the table. `batches` counts the model's executions by their number of images."""

    concurrency: int
    batching: str
    seconds: float
    requests: int
    failed: int
    lost: int
    images_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_batch: float
    batches: dict[int, int]


@click.command(context_settings={"show_default": True})
@click.option("--model", default="poolformer_s12", metavar="NAME")
@click.option("--server", required=True, type=click.Path(path_type=Path, exists=True), help="A tritonserver.")
@click.option("--seconds", default=20.0, help="Of load on each server at each concurrency.")
@click.option("--concurrency", "levels", type=int, multiple=True, default=(1, 4, 16), help="May be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
def main(model: str, server: Path, seconds: float, levels: tuple[int, ...], out: Path | None) -> None:
    progress = ConsoleProgress()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        export = Path(scratch, "export")
        run_export(ExportOptions(model, target="onnx", output=export, triton=False), progress)
        options = RepositoryOptions(backend="python", queue_seconds=100)
        _, deployable = deploy([export], Path(scratch, "on"), options, progress)
        for batching, change in CHANGES.items():
            shutil.copytree(Path(scratch, "on"), Path(scratch, batching))
            rewrite(Path(scratch, batching, deployable.name), change)
        sides = [
            Side(batching, running.enter_context(serving(server, Path(scratch, batching))))
            for batching in ("on", *CHANGES)
        ]
        for side in sides:
            check(side, deployable.name, export)
        rows = [row for level in levels for row in measured(sides, deployable.name, level, seconds)]
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": bench.machine(),
        "model": model,
        "latencies_ms": dict(deployable.curve.points),
        "preferred_batch_sizes": deployable.curve.preferred(deployable.max_batch),
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
    }
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(table(rows))
    sys.exit(1 if any(row.failed or row.lost for row in rows) else 0)


def off(config: schema.ModelConfig) -> None:
    """Every request a batch of its own."""
    config.ClearField("dynamic_batching")


CHANGES: Mapping[str, Callable[[schema.ModelConfig], None]] = {"off": off}
"""What is changed in the derived configuration of the model."""


def rewrite(model: Path, change: Callable[[schema.ModelConfig], None]) -> None:
    """A model's configuration, changed."""
    config = schema.read(model / schema.CONFIG)
    change(config)
    (model / schema.CONFIG).write_text(schema.to_text(config), encoding="utf-8")


@contextmanager
def serving(program: Path, repository: Path) -> Iterator[str]:
    """The gRPC address of a server that is ready."""
    options = ServerOptions("127.0.0.1", *free_ports(3))
    command = command_line(program, repository, Needs((), python=True), options)
    with started(command, options.http, lambda line, wrong: None, lambda: False) as server:
        if failed := server.wait_until_ready(_READY_S, lambda: False):
            raise click.ClickException(f"models failed to load: {failed}")
        yield options.grpc


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def check(side: Side, model: str, export: Path) -> None:
    """End if the server does not give eager's classes and scores."""
    spec = read_spec(export)
    logits = eager.run(create_model(spec.name, seed=0), load_images(None, spec).batch)[0].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    wanted = powers / powers.sum(axis=-1, keepdims=True)
    answer = grpc.InferenceServerClient(side.address).infer(f"{model}_ensemble", [images(shipped_files())])
    classes, scores = answer.as_numpy("class_ids"), answer.as_numpy("scores")
    error = np.abs(scores - np.take_along_axis(wanted, classes, axis=-1)).max()
    if not np.array_equal(classes[:, 0], wanted.argmax(axis=-1)) or error > MAX_ERROR:
        raise click.ClickException(f"the server's answers are not eager's, by {error:.2g}")


def measured(sides: list[Side], model: str, level: int, seconds: float) -> list[Row]:
    """Each server under the load of `level` clients, in turns."""
    loads = {side: Load() for side in sides}
    for side in sides:
        ask(side, model, level, 1.0, Load())  # warm
    while min(load.seconds for load in loads.values()) < seconds:
        for side, load in loads.items():
            before = batches_of(side, model)
            ask(side, model, level, min(_TURN, seconds), load)
            load.batches += batches_of(side, model) - before
    return [row_of(level, side, load) for side, load in loads.items()]


def ask(side: Side, model: str, level: int, seconds: float, load: Load) -> None:
    """Clients that send one photograph after the other, each waiting for its answer."""
    started_at = time.perf_counter()
    end = started_at + seconds
    threads = [
        threading.Thread(target=one_client, args=(side.address, f"{model}_ensemble", number, end, load))
        for number in range(level)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds += time.perf_counter() - started_at


def one_client(address: str, ensemble: str, number: int, end: float, load: Load) -> None:
    client = grpc.InferenceServerClient(address)
    files = shipped_files()
    while time.perf_counter() < end:
        photograph = images([files[number % len(files)]])
        number += 1
        load.sent += 1
        begun = time.perf_counter()
        try:
            client.infer(ensemble, [photograph], client_timeout=100)
        except InferenceServerException as error:
            load.failures.append(str(error))
        else:
            load.milliseconds.append(1000 * (time.perf_counter() - begun))
    client.close()


def images(files: list[bytes]) -> grpc.InferInput:
    """A batch of encoded images (N, 1)."""
    batch: NDArray[np.object_] = np.array([[data] for data in files], np.object_)
    tensor = grpc.InferInput("image", list(batch.shape), "BYTES")
    tensor.set_data_from_numpy(batch)
    return tensor


def shipped_files() -> list[bytes]:
    """The photographs that come with the package."""
    return [path.read_bytes() for path in shipped()]


def batches_of(side: Side, model: str) -> Counter[int]:
    """Executions of the model so far, by batch size."""
    statistics = grpc.InferenceServerClient(side.address).get_inference_statistics(model)
    return Counter({each.batch_size: each.compute_infer.count for each in statistics.model_stats[0].batch_stats})


def row_of(level: int, side: Side, load: Load) -> Row:
    p50, p95, p99 = np.percentile(load.milliseconds, [50, 95, 99]).round(1)
    executed = sum(load.batches.values())
    return Row(
        concurrency=level,
        batching=side.batching,
        seconds=round(load.seconds, 1),
        requests=load.sent,
        failed=len(load.failures),
        lost=load.sent - len(load.milliseconds) - len(load.failures),
        images_per_second=round(len(load.milliseconds) / load.seconds, 1),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        mean_batch=round(sum(size * count for size, count in load.batches.items()) / executed, 2),
        batches=dict(sorted(load.batches.items())),
    )


def table(rows: list[Row]) -> str:
    """In Markdown."""
    head = ("clients", "dynamic batching", "images/s", "p50 ms", "p95 ms", "p99 ms", "requests", "failed", "lost")
    lines = [(*head, "mean batch", "batches run, by images"), ("--:",) * 10 + ("---",)]
    for row in rows:
        batches = ", ".join(f"{count}x {size}" for size, count in row.batches.items())
        lines.append(
            (
                str(row.concurrency), row.batching, f"{row.images_per_second:.1f}",
                f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}", f"{row.p99_ms:.1f}",
                str(row.requests), str(row.failed), str(row.lost), f"{row.mean_batch:.2f}", batches,
            )
        )  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Output folders -> a Triton model repository: what is served, from which file, and how it was measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .artifacts import ModelSpec
from .calibration.images import decode, load_images, shipped
from .delivered import read_manifest, read_spec
from .errors import InputError
from .output import put_in_place
from .progress import Progress
from .quantizing import FOR_TENSORRT
from .runtime.bench import machine
from .runtime.engine import load_engine
from .runtime.threads import available_threads
from .runtime.triton.curve import Curve, measured
from .runtime.triton.deployable import ONNX, PLAN, Deployable, capability, onnx_file
from .runtime.triton.labels import labels_for
from .runtime.triton.lint import lint
from .runtime.triton.options import RepositoryOptions
from .runtime.triton.publishing import Published, publish
from .runtime.triton.writing import write_repository

REPOSITORY = "triton"
"""Folder of an export's own repository."""
_NUMPY = {"FP32": np.float32, "FP16": np.float16}
_RUNTIME = "onnxruntime-cpu"


def deploy(
    folders: Sequence[Path],
    repository: Path,
    options: RepositoryOptions,
    progress: Progress,
    *,
    measure: bool = True,
    force: bool = False,
    keep: int | None = None,
) -> tuple[tuple[Published, ...], Deployable]:
    """Add an export to a repository; several folders are engines of one model for different GPUs.

    Args:
        measure: time the model at growing batch sizes, which its batching is derived from; else what the export timed.
        force: also where an export's proof failed.
        keep: versions of each model that stay, the newest; None keeps all.

    Raises:
        InputError: a folder is none of this tool's, failed, or is of another model than the first.
    """
    first, *others = folders
    manifest = read_manifest(first)
    for folder in folders:
        if read_manifest(folder).get("status") != "passed" and not force:
            raise InputError(
                f"{folder} is marked failed; its parity.json says why, and --force serves it all the same."
            )
    deployable = deployable_of(first, read_spec(first), manifest, options)
    deployable = with_plans(deployable, first, others)
    if measure and deployable.backend != "tensorrt" and options.device != "gpu":
        with progress.stage("measure") as done:
            deployable = replace(deployable, curve=measured_curve(first, deployable, progress))
            done(told(deployable.curve))
    with progress.stage("publish") as done, tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, REPOSITORY)
        _write(deployable, written, options)
        published = publish(written, repository, keep=keep)
        done(str(repository))
    return published, deployable


def write_own_repository(folder: Path, spec: ModelSpec, manifest: Mapping[str, Any]) -> None:
    """The repository of an export, inside its own folder; in one step in place of one that is there."""
    # ONNX Runtime has no bfloat16 on a CPU.
    options = RepositoryOptions(device="gpu" if manifest["precision"]["requested"] == "bf16" else "auto")
    deployable = deployable_of(folder, spec, manifest, options)
    with tempfile.TemporaryDirectory(prefix=".triton-", dir=folder) as scratch:
        written = Path(scratch, REPOSITORY)
        _write(deployable, written, options)
        put_in_place(written, folder / REPOSITORY)


def deployable_of(folder: Path, spec: ModelSpec, manifest: Mapping[str, Any], options: RepositoryOptions) -> Deployable:
    """An output folder as it is to be served, with the latencies that its export timed.

    Raises:
        InputError: the folder lacks the file that the backend needs, or the labels are of another number of classes.
    """
    backend = options.backend
    if backend == "auto":
        backend = "tensorrt" if (folder / PLAN).is_file() else "onnxruntime"
    main = folder / (PLAN if backend == "tensorrt" else ONNX)
    engine: Mapping[str, Any] = manifest.get("tensorrt") or {}
    if not main.is_file() or (backend == "tensorrt" and not engine):
        way_out = f"metaformer-export build {folder} makes it" if main.name == PLAN else "export the model again"
        raise InputError(f"{main} does not exist, or the manifest does not tell of it; {way_out}.")
    if backend == "onnxruntime" and options.accelerator == "tensorrt" and (folder / FOR_TENSORRT).is_file():
        main = folder / FOR_TENSORRT  # eight bits as TensorRT takes them; model.onnx has them as a CPU does
    graph = onnx_file(folder / engine["source"] if backend == "tensorrt" else main)
    data = main.with_name(f"{main.name}.data")
    beside = {data.name: data} if data.is_file() else {}
    return Deployable(
        name=options.name or usual_name(spec),
        spec=spec,
        precision=manifest["precision"]["requested"],
        backend=backend,
        files={PLAN if backend == "tensorrt" else ONNX: main, **beside},
        input=replace(graph.image, dims=(spec.in_chans, *spec.image_size)),
        outputs=tuple(replace(each, dims=each.dims[1:]) for each in graph.outputs),
        max_batch=int(engine["batch"][2] if backend == "tensorrt" else manifest["batch"]["largest"]),
        curve=timed_curve(folder, manifest, backend),
        manifest=manifest,
        labels=() if spec.features else labels_for(spec.num_classes, options.labels),
        photograph=_photograph(spec, graph.image.data_type),
        engines={PLAN: engine} if backend == "tensorrt" else {},
    )


def _write(deployable: Deployable, folder: Path, options: RepositoryOptions) -> None:
    """A repository that the linter finds nothing in; InputError with the first finding."""
    write_repository(deployable, folder, options)
    # Which versions there are is seen when they are added to those of a repository.
    if findings := [each for each in lint(folder) if each.rule != "versions"]:
        more = f" ({len(findings) - 1} more)" if len(findings) > 1 else ""
        raise InputError(f"{findings[0].model} could not be served: {findings[0].text}{more}.")


def usual_name(spec: ModelSpec) -> str:
    """A model's name in a repository, for instance hornet_t, or hornet_t_horfpn_7x7 with a neck."""
    return "_".join(part for part in (spec.short_name, spec.neck or ("features" if spec.features else "")) if part)


def with_plans(deployable: Deployable, folder: Path, others: Sequence[Path]) -> Deployable:
    """With engines of the same model for other GPUs, which the server picks by compute capability.

    Raises:
        InputError: a folder has no engine, or one of another model or TensorRT, or for a GPU that there is one for.
    """
    files, engines, largest = dict(deployable.files), dict(deployable.engines), deployable.max_batch
    for other in others:
        manifest = read_manifest(other)
        engine = manifest.get("tensorrt")
        if deployable.backend != "tensorrt" or not engine or not (other / PLAN).is_file():
            raise InputError(f"several folders are for several GPUs: {folder} and {other} need a {PLAN} each.")
        ours, theirs = (_identity(each) for each in (deployable.manifest, manifest))
        for what, here in theirs.items():
            if here != ours[what]:
                raise InputError(f"{other} is of another {what} than {folder}: {here}, not {ours[what]}.")
        if capability(engine) in map(capability, engines.values()):
            raise InputError(f"{other} is for compute capability {capability(engine)}, and so is an engine before it.")
        file = f"sm_{engine['architecture']}.plan"
        engines[file], files[file] = engine, other / PLAN
        largest = min(largest, int(engine["batch"][2]))
    return replace(deployable, files=files, engines=engines, max_batch=largest)


def timed_curve(folder: Path, manifest: Mapping[str, Any], backend: str) -> Curve:
    """The latencies that the export measured of the file that is served; none if it was not timed."""
    if backend == "tensorrt":
        engine = manifest["tensorrt"]
        points = {int(batch): float(ms) for batch, ms in engine["gpu_milliseconds"].items()}
        return Curve(tuple(sorted(points.items())), f"TensorRT {engine['version']} on {engine['gpu']}")
    path = folder / "bench.json"
    try:
        bench: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in bench["results"] if row["runtime"] == _RUNTIME and row["file"] == ONNX]
        points = {int(row["batch"]): float(row["median_ms"]) for row in rows}
        return Curve(tuple(sorted(points.items())), f"{_RUNTIME}, {bench['machine']}, {bench['threads']} threads")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); export the model again.") from error


def measured_curve(folder: Path, deployable: Deployable, progress: Progress) -> Curve:
    """The latencies of model.onnx in ONNX Runtime on this machine, up to the largest batch."""
    threads = available_threads()
    session = load_engine(folder / ONNX, runtime="onnxruntime", threads=threads)
    images = load_images(None, deployable.spec)
    source = f"{_RUNTIME}, {machine()}, {threads} threads"
    return measured(lambda batch: session(images.take(0, batch)), deployable.max_batch, source, progress.step)


def told(curve: Curve) -> str:
    """For people."""
    return ", ".join(f"batch {batch} {milliseconds:.1f} ms" for batch, milliseconds in curve.points) or "nothing"


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What engines of one model have in common."""
    return {
        "model": manifest["model"]["name"],
        "checkpoint": (manifest["inputs"]["checkpoint"] or {}).get("sha256", manifest["model"]["weights"]),
        "image size": manifest["model"]["image_size"],
        "precision": manifest["precision"]["requested"],
        "TensorRT": manifest["tensorrt"]["version"],
    }


def _photograph(spec: ModelSpec, data_type: str) -> tuple[bytes, bytes]:
    """A photograph, encoded and as the model's input."""
    path = shipped()[0]
    encoded = path.read_bytes()
    return encoded, decode(encoded, path, spec).astype(_NUMPY[data_type]).tobytes()

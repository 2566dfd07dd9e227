# SPDX-License-Identifier: Apache-2.0
"""metaformer-export eval: accuracy of what was exported, on a folder of images."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import ConsoleProgress
from .errors import InputError

if TYPE_CHECKING:
    from .calibration.dataset import Dataset
    from .runtime.evaluate import Evaluation
    from .runtime.session import Session

_RUNTIMES = ("auto", "onnxruntime", "openvino", "tensorrt")


@click.command("eval", short_help="Measure the accuracy of an exported model.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Images, in a folder for each class for accuracy; or .npy/.npz of preprocessed float32 images.",
)
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="FILE", help="The exported weights, to compare.")
@click.option("--runtime", type=click.Choice(_RUNTIMES), default="auto", show_default=True, help="What runs the model.")
@click.option(
    "--file",
    metavar="NAME",
    help="Another graph of the folder, in ONNX Runtime, model.tensorrt.onnx in float between its Q/DQ pairs; "
    "or model.plan, in TensorRT.",
)
@click.option("--batch-size", type=click.IntRange(1, 1024), default=8, show_default=True, metavar="N")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take N images, drawn by the seed. [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def eval_command(
    folder: Path,
    data: Path,
    checkpoint: Path | None,
    runtime: Any,
    file: str | None,
    batch_size: int,
    limit: int | None,
    seed: int,
    as_json: bool,
    debug: bool,
) -> int:
    """Run the model in the output folder DIR over the images of FOLDER.

    With a folder for each class (sorted, as torchvision's ImageFolder numbers
    them) it says how often the model is right; compared with eager PyTorch,
    which needs the checkpoint that was exported, how often both say the same.
    """
    del debug  # main looks for it, whichever command it follows
    from .calibration.dataset import open_dataset
    from .delivered import eager_model, read_spec
    from .runtime import eager
    from .runtime.engine import load_engine
    from .runtime.evaluate import check_labels, evaluate

    spec = read_spec(folder)
    if spec.features:
        raise InputError(f"{folder} holds a model that returns stage maps; only classifiers can be evaluated.")
    session = load_engine(folder, runtime=runtime) if file is None else _other(folder, file, runtime)
    model = eager_model(spec, checkpoint)
    progress = ConsoleProgress()
    with progress.count("read", limit) as told:
        dataset = open_dataset(data, spec, size=limit, seed=seed, told=lambda: told(1))
    check_labels(dataset, spec.num_classes)
    with progress.count("eval", len(dataset.samples)) as told:
        found = evaluate(
            session,
            dataset,
            batch_size=batch_size,
            num_classes=spec.num_classes,
            reference=None if model is None else partial(eager.run, model),
            told=told,
        )
    if as_json:
        facts = {
            "folder": str(folder),
            "model": spec.name,
            "runtime": runtime,
            "data": _facts(dataset),
            **asdict(found),
        }
        click.echo(json.dumps(facts, indent=2))
        return 0
    for title, text in _lines(dataset, found):
        click.echo(f"{title:12s}{text}")
    if model is None:
        click.echo(f"note: --checkpoint FILE ({spec.weights}) compares with eager PyTorch as well.", err=True)
    return 0


def _other(folder: Path, file: str, runtime: str) -> Session:
    """A graph of the folder that is not the one to be chosen."""
    from .delivered import file_of
    from .quantizing import FOR_TENSORRT
    from .runtime import onnxruntime
    from .runtime.engine import load_engine
    from .runtime.threads import available_threads

    if runtime == "openvino":
        raise InputError("--file is run in ONNX Runtime; leave out --runtime.")
    path = file_of(folder, file)
    if path.suffix == ".plan":
        return load_engine(path)
    try:
        return onnxruntime.open_session(path, threads=available_threads(), literal=file == FOR_TENSORRT)
    except onnxruntime.LOAD_ERRORS as error:
        raise InputError(f"{path} cannot be run by ONNX Runtime on the CPU: {str(error).splitlines()[0]}") from error


def _facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "source": dataset.source,
        "found": dataset.found,
        "unreadable": list(dataset.unreadable),
        "classes": list(dataset.classes),
        "sha256": dataset.sha256,
    }


def _lines(dataset: Dataset, found: Evaluation) -> list[tuple[str, str]]:
    """For people: a title and a text each."""
    how, size = dataset.spec.preprocessing, dataset.spec.image_size
    lines = [("data", dataset.summary())]
    if dataset.samples and dataset.samples[0].row is None:
        lines.append(
            ("images", f"{size[0]}x{size[1]}, {how.interpolation}, crop {how.crop:g}, mean {how.mean}, std {how.std}")
        )
    if found.top1 is None:
        lines.append(("accuracy", "unknown: the images have no labels"))
    else:
        eager = "" if found.eager_top1 is None else f" (eager {found.eager_top1:.2f} %)"
        top5 = "" if found.top5 is None else f", top-5 {found.top5:.2f} %"
        lines.append(("accuracy", f"top-1 {found.top1:.2f} %{eager}{top5}"))
    if found.agreement is not None and found.rms_rel is not None:
        lines.append(
            (
                "agreement",
                f"{found.agreement:.2f} % with eager's class, rms error {100 * found.rms_rel:.2g} % of the spread",
            )
        )
    lines.append(("speed", f"{found.images_per_second:.1f} images/s at batch {found.batch_size}"))
    return lines

# SPDX-License-Identifier: Apache-2.0
"""What each precision costs in accuracy, on the small trained model of each family.

    python benchmarks/accuracy.py --out docs/performance/accuracy.json

The models of tests/trained_models.py, trained on scikit-learn's handwritten digits, on all test images: eager, the
float32 file, the float16 and bfloat16 graphs with every tensor rounded, and both INT8 graphs as `--int8` makes them by
default: model.onnx as ONNX Runtime runs it on this processor, model.tensorrt.onnx in float arithmetic between its Q/DQ
pairs, every other tensor rounded to float16; and model.onnx of `--int8 --target onnx`, likewise. Beside them what
onnxruntime's quantize_static makes of torch's own export with the same images (minimum and maximum, one scale for each
weight, all Conv, MatMul and Gemm): as it runs on this processor, whose sums of eight-bit products may overflow, and in
float arithmetic between its pairs, without that.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from peers import torch_export
from trained_models import TRAINED, Trained, digits

from metaformer_export.artifacts import Converted, Lowered, ModelSpec, Target
from metaformer_export.calibrating import calibrated
from metaformer_export.calibration.dataset import Dataset, held_out, open_dataset
from metaformer_export.export.lower import lower, lower_all
from metaformer_export.export.precision import convert
from metaformer_export.export.serialize import serialize
from metaformer_export.export.trace import BFLOAT16_OPSET, trace
from metaformer_export.models.loading import load_model
from metaformer_export.options import CalibrationOptions, ExportOptions
from metaformer_export.progress import Silent
from metaformer_export.quantizing import DELIVERED, FOR_TENSORRT, INT8_FORM, quantized_graphs
from metaformer_export.report import versions
from metaformer_export.runtime import bench, eager
from metaformer_export.runtime.evaluate import Evaluation, evaluate
from metaformer_export.runtime.observe import largest_magnitudes, rounded
from metaformer_export.runtime.onnxruntime import open_session
from metaformer_export.runtime.saturation import weight_bits
from metaformer_export.runtime.threads import available_threads

Run = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
NAIVE, NAIVE_EXACT = "naive INT8", "naive INT8, exact sums"
ON_CPU, FOR_ONNX_RUNTIME = "INT8 CPU", "INT8 for ONNX Runtime"
WAYS = ("eager", "FP32", "FP16", "BF16", ON_CPU, FOR_ONNX_RUNTIME, NAIVE, "INT8 TensorRT", NAIVE_EXACT)
_BATCH = 32


@dataclass(frozen=True)
class Row:
    """One model in one way: top-1 and agreement with eager in percent, the error over the spread of eager's logits."""

    model: str
    way: str
    top1: float
    agreement: float
    rms: float


@dataclass
class Report:
    """What is written with --out."""

    date: str
    machine: str
    weight_bits: int
    images: int
    calibrated_with: int
    method: str
    versions: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def measure(trained: Trained, folder: Path, calibration: CalibrationOptions) -> Iterator[Row]:
    """All ways of one model."""
    loaded = load_model(trained.model, checkpoint=trained.weights, sizes=trained.sizes, image_size=trained.side)
    tested = open_dataset(folder / "test", loaded.spec)
    shown = open_dataset(folder / "train", loaded.spec, size=calibration.size)
    ways = {"eager": partial(eager.run, loaded.module)}
    ways |= _files(loaded.module, loaded.spec, shown, calibration)
    with tempfile.TemporaryDirectory() as temporary:
        naive = naively_quantised(loaded.module, shown, Path(temporary))
        ways[NAIVE] = open_session(naive, threads=available_threads())
        ways[NAIVE_EXACT] = open_session(naive, threads=available_threads(), literal=True)
        for way, run in ways.items():
            found = _evaluated(run, tested, ways["eager"])
            if found.top1 is None or found.agreement is None or found.rms_rel is None:
                raise SystemExit(f"{trained.name}, {way}: nothing to compare with")
            yield Row(trained.name, way, found.top1, found.agreement, found.rms_rel)


def _files(model: nn.Module, spec: ModelSpec, shown: Dataset, calibration: CalibrationOptions) -> dict[str, Run]:
    images = held_out(shown)
    lowered, own = lower_all(trace(model, spec), (INT8_FORM["auto"], INT8_FORM["onnx"]))
    newer = lower(trace(model, spec, BFLOAT16_OPSET), "portable")
    peaks = largest_magnitudes(lowered, images.batch, available_threads())

    def quantised(form: Lowered, target: Target) -> dict[str, Converted]:
        options = ExportOptions(spec.name, precision="int8", target=target, calibration=calibration)
        graph, found = calibrated(form, shown, options, Path("none"), Silent())
        return quantized_graphs(graph, found.ranges, images, target, {})

    eight = quantised(lowered, "auto")
    graphs = {
        "FP32": lowered.model,
        "FP16": rounded(convert(lowered, "fp16", max_abs=peaks)),
        "BF16": rounded(convert(newer, "bf16")),
        ON_CPU: eight[DELIVERED].model,
        FOR_ONNX_RUNTIME: quantised(own, "onnx")[DELIVERED].model,
        "INT8 TensorRT": rounded(eight[FOR_TENSORRT]),
    }
    return {
        way: open_session(serialize(graph), threads=available_threads(), literal=way == "INT8 TensorRT")
        for way, graph in graphs.items()
    }


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, dataset: Dataset, name: str) -> None:
        self.batches = ({name: images} for images, _ in dataset.batches(_BATCH))

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self.batches, None)


def naively_quantised(model: nn.Module, shown: Dataset, folder: Path) -> Path:
    """What one would do without this tool."""
    images, _ = next(shown.batches(2))
    plain, out = folder / "torch.onnx", folder / "naive.onnx"
    name = torch_export(model, torch.from_numpy(images), plain)
    quantize_static(
        plain,
        out,
        _Reader(shown, name),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


def _evaluated(run: Run, tested: Dataset, reference: Run) -> Evaluation:
    return evaluate(run, tested, batch_size=_BATCH, num_classes=len(tested.classes), reference=reference)


def markdown(report: Mapping[str, Any]) -> str:
    """Top-1 of each model in each way, and how far it is from eager."""
    cells = {(row["model"], row["way"]): row for row in report["rows"]}
    models = list(dict.fromkeys(row["model"] for row in report["rows"]))
    lines = [f"{report['date']}, {report['machine']}, {report['weight_bits']} bits of weights", ""]
    lines += ["| model | " + " | ".join(WAYS) + " |", "|---|" + "--:|" * len(WAYS)]
    for model in models:
        texts = [f"{cells[model, 'eager']['top1']:.2f} %"]
        texts += [
            f"{cells[model, way]['top1']:.2f} % ({100 * cells[model, way]['rms']:.2g} %)"
            for way in WAYS
            if way != "eager"
        ]
        lines.append(f"| {model} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("models", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="JSON.")
def main(models: tuple[str, ...], out: Path | None) -> None:
    """Evaluate MODELS (all of tests/trained_models.py if none is named)."""
    training, testing = digits()
    calibration = CalibrationOptions()
    report = Report(
        datetime.now(UTC).date().isoformat(),
        bench.machine(),
        weight_bits(),
        len(testing.labels),
        calibration.size,
        calibration.method,
        versions(),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        training.write(folder / "train")
        testing.write(folder / "test")
        for trained in TRAINED:
            if models and trained.name not in models:
                continue
            for row in measure(trained, folder, calibration):
                click.echo(f"{row.model} {row.way}: {row.top1:.2f} %, {100 * row.rms:.3g} %", err=True)
                report.rows.append(row)
    if out is not None:
        out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    click.echo(markdown(asdict(report)))


if __name__ == "__main__":
    main()

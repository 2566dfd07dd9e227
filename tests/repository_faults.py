# SPDX-License-Identifier: Apache-2.0
"""Model repositories that are right but for one thing: what each rule of the linter is there for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import repositories
from repositories import edit
from tritonclient.grpc import model_config_pb2 as schema


def configured(model: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda repository: edit(repository / model, change)


def told(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Another export.json."""

    def spoil(repository: Path) -> None:
        path = repository / "small/1/export.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def engine_told(file: str = "model.plan", **changed: Any) -> Callable[[Path], None]:
    return told(lambda content: content["engines"][file].update(changed))


def put(path: str, content: bytes) -> Callable[[Path], None]:
    def write(repository: Path) -> None:
        (repository / path).write_bytes(content)

    return write


def gone(path: str) -> Callable[[Path], None]:
    def remove(repository: Path) -> None:
        target = repository / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return remove


def graph(batch: int | str = "batch", data_type: int = onnx.TensorProto.FLOAT) -> Callable[[Path], None]:
    """Another model.onnx."""
    return lambda repository: onnx.save(
        repositories.graph(data_type=data_type, batch=batch), repository / "small/1/model.onnx"
    )


def graph_without_its_weights(repository: Path) -> None:
    """Copied alone."""
    path = repository / "small/1/model.onnx"
    onnx.save(repositories.graph(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    path.with_name("model.onnx.data").unlink()


def step(number: int, change: Callable[[Any], object]) -> Callable[[Path], None]:
    return configured("small_ensemble", lambda config: change(config.ensemble_scheduling.step[number]))


def renamed_input(sample: Any, old: str, new: str) -> None:
    sample.inputs[new].CopyFrom(sample.inputs.pop(old))


def retyped(tensor: Any) -> None:
    """As many bytes, of another type."""
    tensor.data_type = schema.TYPE_INT32


def reshaped(tensor: Any, height: int, width: int) -> None:
    tensor.dims[:] = [3, height, width]


@dataclass(frozen=True)
class Fault:
    """A repository that is right but for one thing, and all that is to be found: (model, text) of each finding."""

    rule: str
    kind: str
    spoil: Callable[[Path], None]
    findings: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.rule}: {self.findings[0][1]}"


def fault(rule: str, kind: str, spoil: Callable[[Path], None], model: str, *texts: str) -> Fault:
    """One of which everything that is found is of one model."""
    return Fault(rule, kind, spoil, tuple((model, text) for text in texts))


PIXELS = "small/warmup/pixels"
FAULTS = (
    fault(
        "schema",
        "onnxruntime",
        put("small/config.pbtxt", b"max_batches: 8"),
        "small",
        'R/small/config.pbtxt does not follow Triton\'s schema: line 1:1 : Message type "inference.ModelConfig" has no '
        'field named "max_batches"',
    ),
    fault("schema", "onnxruntime", gone("small_postprocess/config.pbtxt"), "small_postprocess", "cannot be read: "),
    fault("schema", "onnxruntime", put("small/config.pbtxt", b"name: '\xff'"), "small", "cannot be read: 'utf-8'"),
    # A server takes every folder for a model, whatever its name, and is not ready while one does not load.
    fault(
        "schema",
        "onnxruntime",
        lambda repository: (repository / ".partial-1").mkdir(),
        ".partial-1",
        "R/.partial-1/config.pbtxt cannot be read",
    ),
    fault(
        "name",
        "onnxruntime",
        configured("small", lambda config: setattr(config, "name", "large")),
        "small",
        "the configuration is of large, the folder is small",
    ),
    fault("files", "onnxruntime", gone("small/1/model.onnx"), "small", "version 1 has no model.onnx"),
    fault("files", "onnxruntime", graph_without_its_weights, "small", "version 1 has no model.onnx.data"),
    fault("files", "tensorrt", gone("small/1/model.plan"), "small", "version 1 has no model.plan"),
    fault("files", "engines", gone("small/1/sm_80.plan"), "small", "version 1 has no sm_80.plan"),
    fault("files", "python", gone("small_preprocess/1/model.py"), "small_preprocess", "version 1 has no model.py"),
    fault(
        "files",
        "onnxruntime",
        configured("small", lambda config: setattr(config, "backend", "libtorch")),
        "small",
        "backend libtorch is not one of tensorrt, onnxruntime, python",
    ),
    fault(
        "files",
        "onnxruntime",
        configured("small", lambda config: setattr(config, "default_model_filename", "large.onnx")),
        "small",
        "version 1 has no large.onnx",
    ),
    fault(
        "versions",
        "onnxruntime",
        lambda repository: (repository / "small_ensemble/1").rename(repository / "small_ensemble/01"),
        "small_ensemble",
        "there is no version: a folder named by a number without leading zeros",
    ),
    fault(
        "versions",
        "onnxruntime",
        configured("small", lambda config: config.version_policy.specific.versions.extend([1, 3])),
        "small",
        "the version policy asks for version 3, which is not there",
    ),
    fault(
        "tensors",
        "onnxruntime",
        graph(data_type=onnx.TensorProto.FLOAT16),
        "small",
        "input images is FP32, in version 1 FP16",
        "output logits is FP32, in version 1 FP16",
    ),
    fault(
        "tensors",
        "tensorrt",
        told(lambda content: content["outputs"][0].update(dims=[11])),
        "small",
        "output logits is [10], in version 1 [11]",
    ),
    fault(
        "tensors",
        "tensorrt",
        told(lambda content: content["inputs"][0].update(name="pictures")),
        "small",
        "version 1 has no input images; it has pictures",
    ),
    fault(
        "tensors",
        "maps",
        lambda repository: onnx.save(repositories.graph(), repository / "small/1/model.onnx"),
        "small",
        "version 1 has no output stage0; it has logits",
        "version 1 has no output stage1; it has logits",
    ),
    fault(
        "batch-dimension",
        "onnxruntime",
        graph(batch=1),
        "small",
        *(f"max_batch_size is 8, but {each} of version 1 has a fixed batch of 1" for each in ("images", "logits")),
    ),
    fault(
        "profile",
        "tensorrt",
        engine_told(batch=[1, 2, 4]),
        "small",
        "max_batch_size is 8, and the profile of 1/model.plan ends at 4",
    ),
    fault(
        "profile",
        "engines",
        engine_told("sm_80.plan", batch=[2, 4, 8]),
        "small",
        "the profile of 1/sm_80.plan begins at 2 images: a server sends single ones, too",
    ),
    fault(
        "plugins",
        "tensorrt",
        engine_told(version="10.8.0.43", plugins=["GlobalFilter"]),
        "small",
        "TensorRT 10.8.0.43 runs the plugins of 1/model.plan (GlobalFilter) in Python, which a server has not; build "
        "it with TensorRT 10.9 or later, or with --no-plugins",
    ),
    fault(
        "plugins",
        "tensorrt",
        told(lambda content: content["engines"]["model.plan"]["options"].update(strip_plan=True)),
        "small",
        "1/model.plan was built without its weights (--strip-plan), which a server does not put back",
    ),
    fault(
        "batch-sizes",
        "onnxruntime",
        configured("small", lambda config: config.dynamic_batching.preferred_batch_size.append(9)),
        "small",
        "preferred batch size 9 is not between 1 and max_batch_size 8",
    ),
    fault(
        "batch-sizes",
        "onnxruntime",
        configured("small", lambda config: config.dynamic_batching.preferred_batch_size.append(0)),
        "small",
        "preferred batch size 0 is not between 1 and max_batch_size 8",
    ),
    fault(
        "batch-sizes",
        "everything",
        configured("small", lambda config: config.optimization.cuda.graph_spec.add(batch_size=16)),
        "small",
        "a CUDA graph is for batches of 16, above max_batch_size 8",
    ),
    fault("labels", "onnxruntime", gone("small/labels.txt"), "small", "output logits is named by labels.txt, which is"),
    fault(
        "labels",
        "onnxruntime",
        put("small/labels.txt", b"cat\ndog\n"),
        "small",
        "labels.txt names 2 classes, and logits is [10]",
    ),
    fault(
        "labels",
        "maps",
        configured("small", lambda config: setattr(config.output[1], "label_filename", "names.txt")),
        "small",
        "output stage1 is named by names.txt, which is not there",
    ),
    fault(
        "warm-up",
        "onnxruntime",
        configured("small", lambda config: setattr(config.model_warmup[2], "batch_size", 9)),
        "small",
        "warm-up 'batch of 8' is of 9 images, above max_batch_size",
    ),
    fault(
        "warm-up",
        "onnxruntime",
        configured("small_preprocess", lambda config: renamed_input(config.model_warmup[0], "image", "picture")),
        "small_preprocess",
        "warm-up 'a photograph' does not give the input image",
        "warm-up 'a photograph' gives picture, which is no input",
    ),
    fault(
        "warm-up",
        "python",
        gone("small_preprocess/warmup"),
        "small_preprocess",
        "warm-up 'a photograph' reads warmup/photograph, which is not there",
    ),
    fault(
        "warm-up",
        "onnxruntime",
        put(PIXELS, bytes(100)),
        "small",
        *(["warmup/pixels has 100 bytes, and images 9216"] * 3),
    ),
    fault(
        "warm-up",
        "onnxruntime",
        configured("small", lambda config: retyped(config.model_warmup[0].inputs["images"])),
        "small",
        "warm-up 'batch of 1' gives images as INT32, and it is FP32",
    ),
    fault(
        "warm-up",
        "onnxruntime",
        configured("small", lambda config: reshaped(config.model_warmup[0].inputs["images"], 32, 24)),
        "small",
        "warm-up 'batch of 1' gives images as [3, 32, 24], and it is [3, 24, 32]",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        gone("small_postprocess"),
        "small_ensemble",
        "step small_postprocess is no model of this repository",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        configured("small_ensemble", lambda config: config.instance_group.add(count=1)),
        "small_ensemble",
        "an ensemble has no instances of its own",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        configured("small_ensemble", lambda config: setattr(config, "max_batch_size", 16)),
        "small_ensemble",
        *(f"max_batch_size is above that of step small{each}" for each in ("_preprocess", "", "_postprocess")),
    ),
    fault(
        "ensemble",
        "onnxruntime",
        step(2, lambda last: last.input_map.pop("logits")),
        "small_ensemble",
        "step small_postprocess does not fill the input logits",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        step(2, lambda last: last.input_map.update(extra="logits")),
        "small_ensemble",
        "step small_postprocess names an input extra, which the model has not",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        step(2, lambda last: last.output_map.update(extra="extra")),
        "small_ensemble",
        "step small_postprocess names an output extra, which the model has not",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        configured("small_ensemble", lambda config: config.output.add(name="more", data_type=1, dims=[1])),
        "small_ensemble",
        "no step makes the output more",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        configured("small_preprocess", lambda config: setattr(config.output[0], "data_type", schema.TYPE_FP16)),
        "small_ensemble",
        "small takes pixels as FP32, and it is FP16",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        configured("small_preprocess", lambda config: reshaped(config.output[0], 32, 32)),
        "small_ensemble",
        "small takes pixels as [3, 24, 32], and it is [3, 32, 32]",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        configured("small_ensemble", lambda config: setattr(config.output[1], "data_type", schema.TYPE_INT32)),
        "small_ensemble",
        "the ensemble gives class_ids as INT32, and it is INT64",
    ),
    fault(
        "ensemble",
        "maps",
        configured("small_ensemble", lambda config: config.output[0].dims.append(1)),
        "small_ensemble",
        "the ensemble gives stage0 as [8, 6, 8, 1], and it is [8, 6, 8]",
    ),
    fault(
        "ensemble",
        "onnxruntime",
        step(0, lambda first: first.output_map.update(pixels="other")),
        "small_ensemble",
        "step small waits for pixels, which no step before it makes",
        "step small_postprocess waits for logits, which no step before it makes",
        *(f"no step makes the output {each}" for each in ("scores", "class_ids", "labels")),
    ),
    fault(
        "ensemble",
        "maps",
        step(0, lambda first: first.input_map.update(image="stage0")),
        "small_ensemble",
        "step small_preprocess waits for stage0, which no step before it makes",
        "step small waits for pixels, which no step before it makes",
        *(f"no step makes the output {each}" for each in ("stage0", "stage1")),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Exports as they are to be served, and model repositories of them, without an export: graphs of one product."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import support
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tritonclient.grpc import model_config_pb2 as schema

from metaformer_export.artifacts import ModelSpec
from metaformer_export.runtime.tensorrt.engine import Engine, EngineReport
from metaformer_export.runtime.tensorrt.options import EngineOptions
from metaformer_export.runtime.triton.curve import Curve
from metaformer_export.runtime.triton.deployable import Deployable, Tensor
from metaformer_export.runtime.triton.options import RepositoryOptions
from metaformer_export.runtime.triton.writing import write_repository

CLASSES = 10
SIZE = (24, 32)
"""(height, width) of the images."""
MAPS = {"stage0": (8, 6, 8), "stage1": (16, 3, 4)}
"""Stage maps (C, H, W)."""
GROWING = Curve(((1, 10.0), (2, 18.0), (4, 24.0), (8, 30.0)), "made up")
"""10, 9, 6 and 3.75 ms an image: batches of 4 and of 8 pay."""

Kind = Literal["tensorrt", "onnxruntime", "python"]


def spec(features: bool = False) -> ModelSpec:
    """Of a small model."""
    made = support.spec_for("small", SIZE, tuple(MAPS) if features else ("logits",))
    return replace(made, num_classes=0 if features else CLASSES)


def graph(features: bool = False, data_type: int = TensorProto.FLOAT, batch: int | str = "batch") -> onnx.ModelProto:
    """images -> logits, or the stage maps: (B, 3, 24, 32), averaged, times a matrix."""
    outputs = MAPS if features else {"logits": (CLASSES,)}
    nodes, weights = [helper.make_node("GlobalAveragePool", ["images"], ["mean"])], {}
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    for name, shape in outputs.items():
        weights[f"{name}.weight"] = np.linspace(-1, 1, 3 * int(np.prod(shape))).reshape(3, -1)
        weights[f"{name}.shape"] = np.array([-1, *shape], np.int64)
        nodes.append(helper.make_node("MatMul", ["flat", f"{name}.weight"], [f"{name}.flat"]))
        nodes.append(helper.make_node("Reshape", [f"{name}.flat", f"{name}.shape"], [name]))
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", data_type, [batch, 3, *SIZE])],
        [helper.make_tensor_value_info(name, data_type, [batch, *shape]) for name, shape in outputs.items()],
        [
            numpy_helper.from_array(each if each.dtype == np.int64 else each.astype(dtype), name)
            for name, each in weights.items()
        ],
    )
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def engine(
    architecture: int = 90,
    batch: tuple[int, int, int] = (1, 4, 8),
    version: str = "11.1.0.106",
    plugins: tuple[str, ...] = (),
    strip_plan: bool = False,
) -> dict[str, Any]:
    """The "tensorrt" entry of a manifest, as it is read from a file."""
    options = EngineOptions(strip_plan=strip_plan, timing_cache=Path("timing.cache"))
    report = EngineReport(1, {}, {})
    built = Engine(
        Path("model.plan"), "model.onnx", version, "made up", architecture, plugins, batch, options, 1.0, report
    )
    told = replace(built, gpu_milliseconds={1: 1.0, 4: 2.0}).told()
    return dict(json.loads(json.dumps(told, default=str)))


def manifest(of: ModelSpec, tensorrt: dict[str, Any] | None = None) -> dict[str, Any]:
    """As much of an export's manifest as serving asks for."""
    return {
        "tool": "metaformer-export",
        "status": "passed",
        "model": asdict(of),
        "batch": {"smallest": 1, "usual": 1, "largest": 8},
        "inputs": {"checkpoint": None, "images": []},
        "outputs": {},
        "precision": {"requested": "fp32"},
        "tensorrt": tensorrt,
    }


def jpeg() -> bytes:
    """A small photograph's worth of bytes."""
    pixels = np.linspace(0, 255, 3 * 40 * 60).reshape(40, 60, 3).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "JPEG")
    return target.getvalue()


def deployable(
    folder: Path, backend: Kind = "onnxruntime", *, features: bool = False, data_type: str = "FP32"
) -> Deployable:
    """A small model whose files are written to `folder`: 10 classes, or two stage maps; batches of at most 8."""
    folder.mkdir(parents=True, exist_ok=True)
    types = {"FP32": (TensorProto.FLOAT, np.float32), "FP16": (TensorProto.FLOAT16, np.float16)}
    of, (number, dtype) = spec(features), types[data_type]
    onnx.save(graph(features, number), folder / "model.onnx")
    (folder / "model.plan").write_bytes(b"an engine")
    file = "model.plan" if backend == "tensorrt" else "model.onnx"
    told = engine() if backend == "tensorrt" else None
    outputs = MAPS if features else {"logits": (CLASSES,)}
    return Deployable(
        name="small",
        spec=of,
        precision="fp32",
        backend=backend,
        files={file: folder / file},
        input=Tensor("images", data_type, (3, *SIZE)),
        outputs=tuple(Tensor(name, data_type, shape) for name, shape in outputs.items()),
        max_batch=8,
        curve=GROWING,
        manifest=manifest(of, told),
        labels=() if features else tuple(f"class {i}" for i in range(CLASSES)),
        photograph=(jpeg(), np.full((3, *SIZE), 0.25, dtype).tobytes()),
        engines={} if told is None else {"model.plan": told},
    )


def two_engines(folder: Path) -> Deployable:
    """For compute capabilities 8.0 and 9.0."""
    made = deployable(folder, "tensorrt")
    (folder / "sm_80.plan").write_bytes(b"another engine")
    return replace(
        made,
        files={**made.files, "sm_80.plan": folder / "sm_80.plan"},
        engines={**made.engines, "sm_80.plan": engine(80)},
    )


def written(made: Deployable, folder: Path, options: RepositoryOptions | None = None) -> Path:
    """A repository of it in `folder`, which must not exist yet."""
    write_repository(made, folder, options or RepositoryOptions())
    return folder


def read(path: Path) -> Any:
    """A configuration, straight from its file by Triton's schema."""
    return text_format.Parse(path.read_text("utf-8"), schema.ModelConfig())


def configs(repository: Path) -> dict[str, Any]:
    """Of all models of a repository, by name."""
    return {each.parent.name: read(each) for each in sorted(repository.glob("*/config.pbtxt"))}


def edit(model: Path, change: Callable[[Any], object]) -> None:
    """Change the configuration of a model in its file."""
    config = read(model / "config.pbtxt")
    change(config)
    (model / "config.pbtxt").write_text(text_format.MessageToString(config), "utf-8")

# SPDX-License-Identifier: Apache-2.0
"""The configuration of each model of a repository, derived from the export and what was measured of it.

Fields are those of Triton's model_config.proto.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from tritonclient.grpc import model_config_pb2 as schema

from ...errors import InputError
from .deployable import PLAN, Deployable, Tensor
from .options import RepositoryOptions
from .schema import ModelConfig, data_type

IMAGE = "image"
PIXELS = "pixels"
LABELS = "labels.txt"
WARM_UP_IMAGE = "photograph"
WARM_UP_PIXELS = "pixels"
_LEAST_QUEUE = 4
"""Full batches that may wait, however slow the model was measured to be."""
_LARGEST_QUEUE = 2**32 - 1
"""What the field has room for."""
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


def preprocess_name(model: str) -> str:
    """The model that decodes images, for a model of that name."""
    return f"{model}_preprocess"


def postprocess_name(model: str) -> str:
    """The model that names classes."""
    return f"{model}_postprocess"


def ensemble_name(model: str) -> str:
    """The one that takes encoded images."""
    return f"{model}_ensemble"


def answers(deployable: Deployable, options: RepositoryOptions) -> tuple[Tensor, ...]:
    """What the ensemble gives: the best classes, or the model's own outputs where it gives stage maps."""
    if not deployable.classifies:
        return deployable.outputs
    k = min(options.top_k, deployable.spec.num_classes)
    return Tensor("scores", "FP32", (k,)), Tensor("class_ids", "INT64", (k,)), Tensor("labels", "STRING", (k,))


def model_config(deployable: Deployable, options: RepositoryOptions) -> ModelConfig:
    """The model itself, in the backend that runs its file.

    Raises:
        InputError: something is asked for that the backend has not.
    """
    _check(deployable, options)
    config = _config(deployable.name, deployable.backend, deployable, (deployable.input,), deployable.outputs)
    _queue(config, deployable, options)
    device = "gpu" if deployable.backend == "tensorrt" else options.device
    if deployable.backend == "python" and device == "auto":
        device = "cpu"  # the Python backend takes a GPU whether or not the code in it can use one
    config.instance_group.add(kind=_KINDS[device], count=options.instances)
    if deployable.backend == "tensorrt":
        config.default_model_filename = next(iter(deployable.plans.values()), PLAN)
        if len(deployable.plans) > 1:
            config.cc_model_filenames.update(deployable.plans)
    if deployable.classifies and deployable.labels:
        config.output[0].label_filename = LABELS
    if options.cuda_graphs:
        _cuda_graphs(config, deployable)
    if options.accelerator != "none":
        _accelerate(config, deployable, options)
    sizes = {1, *deployable.curve.preferred(deployable.max_batch)}
    if deployable.backend == "tensorrt":
        sizes.add(deployable.max_batch)
    for batch in sorted(sizes):
        _warm_up(config, f"batch of {batch}", batch, deployable.input, WARM_UP_PIXELS)
    _versions(config, options.versions)
    if options.response_cache:
        config.response_cache.enable = True
    return config


def preprocess_config(deployable: Deployable, options: RepositoryOptions) -> ModelConfig:
    """Encoded images to the model's input."""
    image = Tensor(IMAGE, "STRING", (1,))
    pixels = Tensor(PIXELS, deployable.input.data_type, _fixed(deployable))
    config = _config(preprocess_name(deployable.name), "python", deployable, (image,), (pixels,))
    config.dynamic_batching.SetInParent()  # all threads work on what waits
    config.instance_group.add(kind="KIND_CPU", count=1)
    spec = deployable.spec
    how = {**asdict(spec.preprocessing), "size": spec.image_size, "channels": spec.in_chans}
    _parameter(config, "preprocessing", json.dumps(how))
    _parameter(config, "max_image_bytes", str(round(options.max_image_mb * 1e6)))
    _parameter(config, "max_image_pixels", str(round(options.max_megapixels * 1e6)))
    _warm_up(config, "a photograph", 1, image, WARM_UP_IMAGE)
    _versions(config, _beside(options))
    return config


def postprocess_config(deployable: Deployable, options: RepositoryOptions) -> ModelConfig:
    """Logits to the best classes."""
    outputs = answers(deployable, options)
    config = _config(postprocess_name(deployable.name), "python", deployable, deployable.outputs, outputs)
    config.dynamic_batching.SetInParent()
    config.instance_group.add(kind="KIND_CPU", count=1)
    _parameter(config, "top_k", str(outputs[0].dims[0]))
    _versions(config, _beside(options))
    return config


def ensemble_config(deployable: Deployable, options: RepositoryOptions) -> ModelConfig:
    """The others, one after the other, inside the server."""
    image, outputs = Tensor(IMAGE, "STRING", (1,)), answers(deployable, options)
    config = _config(ensemble_name(deployable.name), "", deployable, (image,), outputs)
    config.platform = "ensemble"
    inner = {each.name: each.name for each in deployable.outputs}
    _step(config, preprocess_name(deployable.name), {IMAGE: IMAGE}, {PIXELS: PIXELS})
    _step(config, deployable.name, {deployable.input.name: PIXELS}, inner)
    if deployable.classifies:
        _step(config, postprocess_name(deployable.name), inner, {each.name: each.name for each in outputs})
    _versions(config, _beside(options))
    return config


def _check(deployable: Deployable, options: RepositoryOptions) -> None:
    for asked, option, backend in (
        (options.cuda_graphs, "--cuda-graphs", "tensorrt"),
        (options.accelerator != "none", f"--accelerator {options.accelerator}", "onnxruntime"),
    ):
        if asked and deployable.backend != backend:
            raise InputError(
                f"{option} goes with the {backend} backend, and {deployable.name} is served by {deployable.backend}."
            )


def _config(
    name: str, backend: str, deployable: Deployable, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> ModelConfig:
    config = schema.ModelConfig(name=name, backend=backend, max_batch_size=deployable.max_batch)
    if backend == "tensorrt":
        config.platform = "tensorrt_plan"
    for tensors, field in ((inputs, config.input), (outputs, config.output)):
        for each in tensors:
            field.add(name=each.name, data_type=data_type(each.data_type), dims=each.dims)
    return config


def _fixed(deployable: Deployable) -> tuple[int, ...]:
    """The model's input as the preprocessing makes it."""
    return (deployable.spec.in_chans, *deployable.spec.image_size)


def _queue(config: ModelConfig, deployable: Deployable, options: RepositoryOptions) -> None:
    """Batches as they were measured to pay; a queue that holds what can be answered in time."""
    batching, curve, largest = config.dynamic_batching, deployable.curve, deployable.max_batch
    # Without a preferred size a server takes what waits, at once. One image as the preferred size would be no batching,
    # but with it, and no delay, requests are left waiting: 19 images a second instead of 29 (tritonserver 2.51).
    batching.preferred_batch_size.extend(curve.preferred(largest))
    wait = curve.wait_ms(largest) if options.queue_delay_ms is None else options.queue_delay_ms
    batching.max_queue_delay_microseconds = round(1000 * wait)
    policy = batching.default_queue_policy
    policy.timeout_action = schema.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = max(1, round(1e6 * options.queue_seconds))  # 0 would be for ever
    policy.allow_timeout_override = True
    in_time = math.ceil(options.queue_seconds * (curve.images_per_second() or 0))
    policy.max_queue_size = min(max(_LEAST_QUEUE * largest, in_time), _LARGEST_QUEUE)


def _cuda_graphs(config: ModelConfig, deployable: Deployable) -> None:
    """Captured for one image and the batches that the server aims at."""
    cuda = config.optimization.cuda
    cuda.graphs = True
    cuda.output_copy_stream = True
    for batch in sorted({1, *deployable.curve.preferred(deployable.max_batch)}):
        graph = cuda.graph_spec.add(batch_size=batch)
        graph.input[deployable.input.name].dim.extend(_fixed(deployable))


def _accelerate(config: ModelConfig, deployable: Deployable, options: RepositoryOptions) -> None:
    """Another executor inside ONNX Runtime's backend."""
    accelerators = config.optimization.execution_accelerators
    on_cpu = options.accelerator == "openvino"
    kind = accelerators.cpu_execution_accelerator if on_cpu else accelerators.gpu_execution_accelerator
    accelerator = kind.add(name=options.accelerator)
    if options.accelerator == "tensorrt":
        accelerator.parameters.update(_for_tensorrt(deployable))
    accelerator.parameters.update(dict(options.accelerator_options))


def _for_tensorrt(deployable: Deployable) -> dict[str, str]:
    """One engine for all batches: without a profile another is built whenever a larger batch comes."""
    sides = "x".join(map(str, _fixed(deployable)))
    usual = max(deployable.curve.preferred(deployable.max_batch), default=1)
    batches = {"min": 1, "opt": usual, "max": deployable.max_batch}
    return {
        "precision_mode": {"fp16": "FP16", "int8": "INT8"}.get(deployable.precision, "FP32"),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/tmp",
        **{f"trt_profile_{name}_shapes": f"{deployable.input.name}:{n}x{sides}" for name, n in batches.items()},
    }


def _warm_up(config: ModelConfig, name: str, batch: int, tensor: Tensor, file: str) -> None:
    """Real image data: zeros would take shorter ways through a decoder, and through a clustering."""
    entry = config.model_warmup.add(name=name, batch_size=batch, count=1)
    sample = entry.inputs[tensor.name]
    sample.data_type = data_type(tensor.data_type)
    sample.dims.extend(tensor.dims)
    sample.input_data_file = file


def _beside(options: RepositoryOptions) -> str:
    """Versions of the other models, which get a new one more seldom: of theirs, numbers of the model's mean nothing."""
    return RepositoryOptions().versions if options.versions.startswith("specific") else options.versions


def _versions(config: ModelConfig, versions: str) -> None:
    kind, _, numbers = versions.partition(":")
    policy = config.version_policy
    if kind == "latest":
        policy.latest.num_versions = int(numbers)
    elif kind == "all":
        policy.all.SetInParent()
    else:
        policy.specific.versions.extend(int(number) for number in numbers.split(","))


def _parameter(config: ModelConfig, name: str, value: str) -> None:
    config.parameters[name].string_value = value


def _step(config: ModelConfig, model: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    step: Any = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    step.input_map.update(inputs)
    step.output_map.update(outputs)

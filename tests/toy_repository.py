# SPDX-License-Identifier: Apache-2.0
"""A model repository with the interface of ours and nothing to wait for: what an image is follows from its length.

toy             pixels FP32 [3, 2, 2] -> logits FP32 [10], the sum of the pixels times the number of the class
toy_scorer      image -> scores, class_ids, labels, as M_ensemble has them; refuses b"bad...", sleeps over b"slow..."
toy_ensemble    toy_scorer as an ensemble
narrow          toy_scorer, whose queue has room for one request
plain           toy, without an ensemble
"""

from __future__ import annotations

from pathlib import Path

SCORES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
CLASSES = 10
SLEEP_S = 0.6
BATCH = 8

_SCORER = f"""
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        time.sleep({SLEEP_S} * any(image.startswith(b"slow") for image in images))
        if any(image.startswith(b"bad") for image in images):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("image 0 of 1 cannot be decoded: it is bad"))
        ids = np.array([[(len(image) + i) % {CLASSES} for i in range(5)] for image in images], np.int64)
        labels = np.array([[f"kind {{i}}".encode() for i in row] for row in ids], np.object_)
        scores = np.array([{SCORES}] * len(images), np.float32)
        outputs = {{"scores": scores, "class_ids": ids, "labels": labels}}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
"""
_TOY = f"""
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        pixels = pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()
        logits = pixels.sum(axis=(1, 2, 3))[:, None] * np.arange({CLASSES}, dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits.astype(np.float32))])
"""
_CPU = "instance_group { kind: KIND_CPU count: 1 }\n"
_IMAGE = 'input { name: "image" data_type: TYPE_STRING dims: [1] }\n'
_ANSWER = "".join(
    f'output {{ name: "{name}" data_type: TYPE_{kind} dims: [5] }}\n'
    for name, kind in (("scores", "FP32"), ("class_ids", "INT64"), ("labels", "STRING"))
)
_ARRAYS = (
    'input { name: "pixels" data_type: TYPE_FP32 dims: [3, 2, 2] }\n'
    f'output {{ name: "logits" data_type: TYPE_FP32 dims: [{CLASSES}] }}\n'
)
_STEPS = 'ensemble_scheduling { step { model_name: "toy_scorer" model_version: -1 %s %s } }\n' % (  # noqa: UP031
    'input_map { key: "image" value: "image" }',
    " ".join(f'output_map {{ key: "{name}" value: "{name}" }}' for name in ("scores", "class_ids", "labels")),
)
_NARROW = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n"


def write_toys(repository: Path, *names: str) -> Path:
    """Write the models of these names, all without any; returns the repository."""
    models = {
        "toy": ('backend: "python"\n' + _ARRAYS + _CPU, _TOY),
        "plain": ('backend: "python"\n' + _ARRAYS + _CPU, _TOY),
        "toy_scorer": ('backend: "python"\n' + _IMAGE + _ANSWER + _CPU, _SCORER),
        "narrow": ('backend: "python"\n' + _IMAGE + _ANSWER + _CPU + _NARROW, _SCORER),
        "toy_ensemble": ('platform: "ensemble"\n' + _IMAGE + _ANSWER + _STEPS, ""),
    }
    for name in names or tuple(models):
        config, code = models[name]
        version = repository / name / "1"
        version.mkdir(parents=True)
        batch = 1 if name == "narrow" else BATCH
        (version.parent / "config.pbtxt").write_text(f'name: "{name}"\nmax_batch_size: {batch}\n{config}', "utf-8")
        if code:
            (version / "model.py").write_text(code, "utf-8")
    return repository


def best_of(image: bytes, top: int = 5) -> list[tuple[str, int, float]]:
    """What toy_scorer says: label, class id and score of each class."""
    ids = [(len(image) + i) % CLASSES for i in range(5)]
    return [(f"kind {number}", number, score) for number, score in zip(ids, SCORES, strict=True)][:top]

# SPDX-License-Identifier: Apache-2.0
"""Logits -> the best classes, in Triton's Python backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray


class TritonPythonModel:
    """logits (B, classes) -> scores, softmax's, float32; class_ids, int64; labels, BYTES: (B, k) each, best first."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.name = config["input"][0]["name"]
        self.k = int(config["parameters"]["top_k"]["string_value"])
        labels = Path(args["model_repository"], args["model_version"], "labels.txt")
        self.labels = np.array(labels.read_bytes().splitlines(), np.object_) if labels.is_file() else None

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, self.name).as_numpy().astype(np.float64)
        if not np.isfinite(logits).all():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("the model's logits are not finite"))
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = powers / powers.sum(axis=-1, keepdims=True)
        ids = np.argsort(-scores, axis=-1, kind="stable")[:, : self.k]
        best = np.take_along_axis(scores, ids, axis=-1).astype(np.float32)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("scores", best),
                pb_utils.Tensor("class_ids", ids.astype(np.int64)),
                pb_utils.Tensor("labels", self.named(ids)),
            ]
        )

    def named(self, ids: NDArray[np.int64]) -> NDArray[np.object_]:
        if self.labels is not None:
            return self.labels[ids]
        return np.array([[str(each).encode() for each in row] for row in ids], np.object_)

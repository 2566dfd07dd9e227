# SPDX-License-Identifier: Apache-2.0
"""model.onnx in ONNX Runtime, in Triton's Python backend, for servers without the backend of that name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

PROVIDERS = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider"}


class TritonPythonModel:
    """(B, C, H, W) -> the outputs of the file, one after the other."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]
        provider = PROVIDERS[args["model_instance_kind"]]
        device = {"device_id": args["model_instance_device_id"]} if args["model_instance_kind"] == "GPU" else {}
        instances = sum(group["count"] for group in config["instance_group"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) // instances)
        # Its threads would wait in a loop for the next request, on the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, device)])
        if self.session.get_providers()[0] != provider:
            raise RuntimeError(f"asked ONNX Runtime for {provider}, got {', '.join(self.session.get_providers())}")

    def execute(self, requests: list[Any]) -> list[Any]:
        batches = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        results = self.session.run(self.outputs, {self.input: np.concatenate(batches)})
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        shares = zip(*(np.split(result, ends) for result in results), strict=True)
        return [pb_utils.InferenceResponse([*map(tensor, self.outputs, share)]) for share in shares]


def tensor(name: str, values: NDArray[Any]) -> Any:
    """An output of one request."""
    return pb_utils.Tensor(name, np.ascontiguousarray(values))

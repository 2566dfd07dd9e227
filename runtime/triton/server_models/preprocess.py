# SPDX-License-Identifier: Apache-2.0
"""Encoded images -> the model's input, in Triton's Python backend: JPEG, PNG, WebP and whatever else Pillow reads.

A request of which one image cannot be decoded is answered with an error that says which and why; the others of the
same batch are not touched by it. What is in preprocessing.py, beside this file, is what the model was proved with.
"""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from preprocessing import normalised, upright


class TritonPythonModel:
    """image, BYTES (B, 1) -> pixels (B, C, H, W) in the type of the model's input."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.how = json.loads(config["parameters"]["preprocessing"]["string_value"])
        self.how["size"] = tuple(self.how["size"])
        self.max_bytes = int(config["parameters"]["max_image_bytes"]["string_value"])
        output = config["output"][0]
        self.name = output["name"]
        self.dtype = pb_utils.triton_string_to_numpy(output["data_type"])
        # Pillow raises only above twice its limit, and warns from there on.
        Image.MAX_IMAGE_PIXELS = int(config["parameters"]["max_image_pixels"]["string_value"]) // 2
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def execute(self, requests: list[Any]) -> list[Any]:
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1) for request in requests]
        # All images of all requests share the threads; Pillow lets go of Python's lock while it decodes and resizes.
        waiting = [[self.pool.submit(self.pixels, data) for data in batch] for batch in images]
        return [self.answer(batch) for batch in waiting]

    def pixels(self, data: bytes) -> NDArray[np.float32]:
        if not data:
            raise ValueError("it is empty")
        if len(data) > self.max_bytes:
            raise ValueError(f"it has {len(data) / 1e6:.1f} MB, and {self.max_bytes / 1e6:g} MB are the limit")
        pixels: NDArray[np.float32] = normalised(upright(data), **self.how)
        return pixels

    def answer(self, batch: list[Future[NDArray[np.float32]]]) -> Any:
        rows = []
        failures = []
        for position, image in enumerate(batch):
            try:
                rows.append(image.result())
            except Exception as error:  # damaged files make decoders raise anything, which would fail the others, too
                which = "the image" if len(batch) == 1 else f"image {position} of {len(batch)}"
                failures.append(f"{which} cannot be decoded: {reason(error)}")
        if failures:
            message = "; ".join(failures)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor(self.name, np.stack(rows).astype(self.dtype, copy=False))])

    def finalize(self) -> None:
        self.pool.shutdown()


def reason(error: BaseException) -> str:
    """In words; Pillow's own name an object of Python's."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of a format that is not known"
    if isinstance(error, MemoryError):
        return "it is too large for the server's memory"
    return str(error) or type(error).__name__

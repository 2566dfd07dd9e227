# SPDX-License-Identifier: Apache-2.0
"""An encoded image -> the model's input, as the family's authors evaluate.

Imports NumPy and Pillow alone: a copy of this file is what preprocesses in a Triton model repository, where nothing
else of this package is installed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
"""What Pillow raises for content that is no image, or a damaged one."""
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def upright(data: bytes) -> Image.Image:
    """Decode a file's content, turned as its EXIF entry says, in three channels of 8 bits; raises UNREADABLE."""
    with Image.open(io.BytesIO(data)) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion cuts 16-bit greys off at 255."""
    if image.mode.startswith("I"):
        grey = (np.asarray(image, np.float64) / 257).clip(0, 255)
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    return image.convert("RGB")


def normalised(
    image: Image.Image,
    size: tuple[int, int],
    *,
    interpolation: str,
    crop: float,
    mean: Sequence[float],
    std: Sequence[float],
    channels: int = 3,
) -> NDArray[np.float32]:
    """Resize so that size / crop is covered, cut out the centre, normalise: (channels, H, W) float32.

    With another number of channels than 3, the red, green and blue planes are repeated in turn.
    """
    height, width = size
    scale = max(height / crop / image.height, width / crop / image.width)
    resized = image.resize(
        (max(width, math.floor(image.width * scale + 0.5)), max(height, math.floor(image.height * scale + 0.5))),
        _RESAMPLING[interpolation],
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32) / 255
    planes = ((pixels - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)
    return np.ascontiguousarray(planes[np.arange(channels) % 3])

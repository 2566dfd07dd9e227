# SPDX-License-Identifier: Apache-2.0
"""Photographs as files: parts of those that the package and scikit-learn bring, in many sizes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from metaformer_export.calibration.images import shipped

PARTS = 8
"""Of each photograph, from a sixth of its sides up to the whole."""


def jpegs() -> list[bytes]:
    """64 JPEG files, no two of the same content; those of each photograph in growing size."""
    wholes = [Image.open(path).convert("RGB") for path in shipped()]
    wholes += [Image.fromarray(pixels) for pixels in load_sample_images().images]
    generator = np.random.default_rng(0)
    found = []
    for whole in wholes:
        for share in np.linspace(1 / 6, 1, PARTS):
            width, height = (max(32, int(side * share)) for side in whole.size)
            left, top = (int(generator.integers(0, most + 1)) for most in (whole.width - width, whole.height - height))
            found.append(encoded(whole.crop((left, top, left + width, top + height)), "JPEG"))
    return found


def encoded(image: Image.Image, format: str) -> bytes:
    """A file's content."""
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()

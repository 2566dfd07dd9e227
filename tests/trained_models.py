# SPDX-License-Identifier: Apache-2.0
"""Small trained models, one of each family, and the handwritten digits that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ASSETS = Path(__file__).parent / "assets"
CLASSES = 10
_FOUR = {"depths": (1, 1, 2, 1)}


@dataclass(frozen=True)
class Trained:
    """A variant made smaller, and how it is trained.

    Attributes:
        side: of the images in pixels.
    """

    name: str
    model: str
    sizes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    side: int = 64
    epochs: int = 12
    batch: int = 64
    learning_rate: float = 2e-3

    @property
    def weights(self) -> Path:
        """Where they lie."""
        return ASSETS / f"{self.name}.safetensors"


TRAINED = (
    Trained("poolformer", "poolformer_s12", {"dims": (16, 32, 48, 64), **_FOUR}),
    Trained("caformer", "caformer_s18", {"dims": (16, 32, 32, 64), **_FOUR}),
    Trained("hornet", "hornet_t", {"width": 8, **_FOUR}),
    Trained("hornet_gf", "hornet_t_gf", {"width": 8, **_FOUR}),
    Trained("focalnet", "focalnet_t", {"width": 12, **_FOUR}),
    Trained("boat_swin", "boat_swin_t", {"width": 12, **_FOUR, "heads": (1, 2, 4, 8)}, 224, 8, 32, 3e-3),
    Trained(
        "acmix_swin", "acmix_swin_t", {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 2, 4, 8)}, 224, 5, 16, 6e-3
    ),
)


@dataclass(frozen=True)
class Digits:
    """Images (N, 8, 8) uint8 and their labels (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def picture(self, index: int) -> Image.Image:
        """One of them."""
        return Image.fromarray(self.images[index])

    def write(self, folder: Path) -> None:
        """A folder of PNG files for each digit."""
        for index, label in enumerate(self.labels):
            place = folder / str(label)
            place.mkdir(parents=True, exist_ok=True)
            self.picture(index).save(place / f"{index:04}.png")


def digits() -> tuple[Digits, Digits]:
    """scikit-learn's handwritten digits, to train with and, every fourth of each class, to test with."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int64)
    test = np.zeros(len(labels), bool)
    for label in range(CLASSES):
        test[np.flatnonzero(labels == label)[::4]] = True
    return Digits(images[~test], labels[~test]), Digits(images[test], labels[test])

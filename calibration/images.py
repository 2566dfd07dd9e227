# SPDX-License-Identifier: Apache-2.0
"""Image files -> the model's input, preprocessed as the family's authors evaluate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..artifacts import ModelSpec
from ..errors import ImageError
from ..models.family import Preprocessing
from .preprocessing import UNREADABLE, normalised, upright

MAX_IMAGES = 6
"""Images a parity check looks at: enough for a full and a second batch of three."""
_SHIPPED = Path(__file__).parent / "photographs"


@dataclass(frozen=True)
class ImageSet:
    """Preprocessed images: `batch` is (N, in_chans, H, W) float32; `names` (paths below the folder) and
    `sha256` say what each is.
    """

    batch: NDArray[np.float32]
    names: tuple[str, ...]
    sha256: tuple[str, ...]
    source: str

    def take(self, start: int, count: int) -> NDArray[np.float32]:
        """`count` images from `start` on: (count, in_chans, H, W).

        After the last the first comes again, shifted sideways by a tenth more each time around: rows
        of a batch that are all the same would not show that a graph mixes them up.
        """
        width = self.batch.shape[-1]
        rounds, index = np.divmod(np.arange(start, start + count), len(self.names))
        shifts = rounds * max(1, width // 10)
        return np.stack([np.roll(self.batch[i], shift, axis=-1) for i, shift in zip(index, shifts, strict=True)])


def load_images(folder: str | Path | None, spec: ModelSpec) -> ImageSet:
    """The user's images, or the photographs that come with the package, as input for a model.

    At most MAX_IMAGES, evenly spread over the sorted files.

    Raises:
        ImageError: no folder, no images in it, or a file that is no image.
    """
    files = shipped() if folder is None else image_files(Path(folder))
    source = "photographs shipped with the package" if folder is None else str(folder)
    if len(files) > MAX_IMAGES:
        files = [files[i * len(files) // MAX_IMAGES] for i in range(MAX_IMAGES)]
    # Two files of the same content count once.
    contents = {hashlib.sha256(data).hexdigest(): (file, data) for file, data in map(_read, files)}
    batch = np.stack([decode(data, file, spec) for file, data in contents.values()])
    root = _SHIPPED if folder is None else Path(folder)
    names = tuple(file.relative_to(root).as_posix() for file, _ in contents.values())
    return ImageSet(batch, names, tuple(contents), source)


def shipped() -> list[Path]:
    """The photographs that come with the package."""
    return sorted(_SHIPPED.glob("*.jpg"))


def _read(file: Path) -> tuple[Path, bytes]:
    try:
        return file, file.read_bytes()
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error.strerror}.") from error


def image_files(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, sorted; each must be an image that Pillow knows."""
    if not folder.exists():
        raise ImageError(f"image folder {folder} does not exist.")
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder; give the folder that holds the images.")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not is_hidden(p.relative_to(folder)))
    if not files:
        raise ImageError(f"there are no images in {folder}.")
    for file in files:
        try:
            with Image.open(file):
                pass
        except UNREADABLE as error:
            raise ImageError(f"{file} is not an image that can be read; remove it from the folder.") from error
    return files


def decode(data: bytes, file: Path, spec: ModelSpec) -> NDArray[np.float32]:
    """Decode a file's content, turn it upright and preprocess it: (in_chans, H, W) float32."""
    try:
        image = upright(data)
    except UNREADABLE as error:
        raise ImageError(f"{file} cannot be decoded ({error}).") from error
    return preprocess(image, spec.preprocessing, spec.image_size, spec.in_chans)


def preprocess(image: Image.Image, how: Preprocessing, size: tuple[int, int], in_chans: int = 3) -> NDArray[np.float32]:
    """An upright RGB image as a model's input: (in_chans, H, W) float32."""
    return normalised(
        image,
        size,
        interpolation=how.interpolation,
        crop=how.crop,
        mean=how.mean,
        std=how.std,
        channels=in_chans,
    )


def is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts) or relative.name == "Thumbs.db"

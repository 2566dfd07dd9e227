# SPDX-License-Identifier: Apache-2.0
"""A user's data, to calibrate and evaluate with: image folders, labelled trees and tensors, a batch at a time."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import ModelSpec
from ..errors import ImageError
from .images import MAX_IMAGES, ImageSet, decode, is_hidden

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
TENSORS = frozenset({".npy", ".npz"})
MOST_UNREADABLE = 0.1
"""Share of the chosen files that may be unreadable: more is a wrong or damaged folder."""
_NAMED = 5


@dataclass(frozen=True)
class Sample:
    """One image: a file, or a row of a file of tensors.

    Attributes:
        name: path below the folder, with the row in brackets.
        label: index of its class; None without labels.
    """

    file: Path
    name: str
    row: int | None = None
    label: int | None = None


@dataclass(frozen=True)
class Dataset:
    """Readable samples in a fixed order.

    Attributes:
        found: samples that there are, of which these were chosen.
        unreadable: names of those that were chosen and cannot be read.
        classes: names of the folders of a labelled tree, in order of their labels; () for other data.
        sha256: of the names, the labels and the contents of all samples.
        rest: samples that were not chosen; nobody has looked whether they can be read.
    """

    source: str
    spec: ModelSpec
    samples: tuple[Sample, ...]
    found: int
    unreadable: tuple[str, ...]
    classes: tuple[str, ...]
    sha256: str
    rest: tuple[Sample, ...] = ()

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64] | None]]:
        """Preprocessed images (B, in_chans, H, W) float32 and their labels (B,), None without; the last batch may be
        smaller.
        """
        for start in range(0, len(self.samples), size):
            chosen = self.samples[start : start + size]
            labels = [each.label for each in chosen if each.label is not None]
            images = np.stack([_image(each, self.spec) for each in chosen])
            yield images, np.array(labels, np.int64) if len(labels) == len(chosen) else None

    def first(self, count: int) -> Dataset:
        """The same with so many of its samples, evenly spread."""
        return replace(self, samples=tuple(_spread(self.samples, count)))

    def others(self, count: int) -> Dataset:
        """So many readable samples that were not chosen, evenly spread."""
        readable = []
        for sample in _spread(self.rest, count):
            with contextlib.suppress(ImageError):
                _content(sample, self.spec)
                readable.append(sample)
        return replace(self, samples=tuple(readable), unreadable=(), rest=())

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        return all(each.label is not None for each in self.samples)

    def summary(self) -> str:
        """Where the data is from, how much of it is used, and what cannot be read, in a line."""
        text = f"{len(self.samples)} of {self.found} images in {self.source}"
        if not self.unreadable:
            return text
        return f"{text}; {len(self.unreadable)} unreadable: {_some(self.unreadable)}"


def open_dataset(
    folder: str | Path, spec: ModelSpec, *, size: int | None = None, seed: int = 0, told: Callable[[], object] = int
) -> Dataset:
    """Choose samples of a folder, and read each once to see that it can be read.

    Args:
        folder: of images in any depth; or with one folder of images for each class; or of .npy and .npz files, which
            hold preprocessed images (N, in_chans, H, W) float32, in an .npz as "images", beside "labels" (N,).
        size: so many, drawn by the seed, in order of their names; None takes all.
        told: called after each sample.

    Raises:
        ImageError: no such folder, nothing in it, both images and tensors, tensors of another shape or that are not
            finite, labels that do not match, or more than MOST_UNREADABLE of the images cannot be read.
    """
    root = Path(folder)
    _arrays.cache_clear()  # the file may be another by now
    samples, classes = _found(root, spec)
    chosen = _drawn(samples, size, seed)
    digest = hashlib.sha256()
    readable, unreadable = [], []
    for sample in chosen:
        try:
            content = _content(sample, spec)
        except ImageError:
            if sample.row is not None:
                raise
            unreadable.append(sample.name)
        else:
            digest.update(f"{sample.name}\0{sample.label}\0".encode())
            digest.update(hashlib.sha256(content).digest())
            readable.append(sample)
        told()
    if len(unreadable) > MOST_UNREADABLE * len(chosen):
        raise ImageError(
            f"{len(unreadable)} of {len(chosen)} images in {root} cannot be read ({_some(unreadable)}); "
            "remove them, or give another folder."
        )
    known = set(chosen)
    rest = tuple(sample for sample in samples if sample not in known)
    return Dataset(str(root), spec, tuple(readable), len(samples), tuple(unreadable), classes, digest.hexdigest(), rest)


def held_out(dataset: Dataset, count: int = MAX_IMAGES) -> ImageSet:
    """Images to prove a calibrated model with: not those chosen, evenly spread, or those where there are too few."""
    found: dict[str, tuple[str, NDArray[np.float32]]] = {}
    for sample in (*_spread(dataset.rest, count), *_spread(dataset.samples, count)):
        if len(found) == count:
            break
        try:
            image = _image(sample, dataset.spec)
            digest = hashlib.sha256(_content(sample, dataset.spec)).hexdigest()
        except ImageError:
            continue  # those that are not chosen may be unreadable
        found.setdefault(digest, (sample.name, image))
    names, images = zip(*found.values(), strict=True)
    kind = "not calibrated with" if len(dataset.rest) >= count else "calibrated with as well"
    return ImageSet(np.stack(images), names, tuple(found), f"{len(names)} images of {dataset.source}, {kind}")


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    return [samples[i * len(samples) // count] for i in range(min(count, len(samples)))]


def _found(root: Path, spec: ModelSpec) -> tuple[list[Sample], tuple[str, ...]]:
    if not root.exists():
        raise ImageError(f"data folder {root} does not exist.")
    if not root.is_dir():
        raise ImageError(f"{root} is not a folder; give the folder that holds the images.")
    files = sorted(p for p in root.rglob("*") if p.is_file() and not is_hidden(p.relative_to(root)))
    images = [file for file in files if file.suffix.lower() in IMAGES]
    tensors = [file for file in files if file.suffix.lower() in TENSORS]
    if images and tensors:
        raise ImageError(f"{root} holds both images ({images[0].name}) and tensors ({tensors[0].name}); keep one kind.")
    if tensors:
        return [row for file in tensors for row in _rows(file, root, spec)], ()
    if not images:
        raise ImageError(f"there are no images in {root}; looked for {', '.join(sorted(IMAGES | TENSORS))}.")
    # A tree: every image below a folder of its own class.
    parts = [file.relative_to(root).parts for file in images]
    tree = all(len(each) > 1 for each in parts)
    classes = tuple(sorted({each[0] for each in parts})) if tree else ()
    number = {name: i for i, name in enumerate(classes)}
    samples = [
        Sample(file, "/".join(each), label=number.get(each[0])) for file, each in zip(images, parts, strict=True)
    ]
    return samples, classes


def _drawn(samples: Sequence[Sample], size: int | None, seed: int) -> list[Sample]:
    if size is None or size >= len(samples):
        return list(samples)
    drawn = np.random.default_rng(seed).permutation(len(samples))[:size]
    return [samples[i] for i in sorted(drawn)]


def _rows(file: Path, root: Path, spec: ModelSpec) -> list[Sample]:
    name = file.relative_to(root).as_posix()
    images, labels = _arrays(file)
    shape = (spec.in_chans, *spec.image_size)
    if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.float32:
        raise ImageError(
            f"{file} holds {images.dtype} of shape {images.shape}; preprocessed float32 images (N, "
            f"{', '.join(str(side) for side in shape)}) are needed."
        )
    if labels is not None and (labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise ImageError(
            f"{file} has labels {labels.dtype} {labels.shape} for {len(images)} images; integers are needed."
        )
    return [
        Sample(file, f"{name}[{row}]", row, None if labels is None else int(labels[row])) for row in range(len(images))
    ]


@lru_cache(maxsize=1)
def _arrays(file: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Images, mapped where the file allows, and labels; only the last file is kept."""
    try:
        if file.suffix.lower() == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False), None
        with np.load(file, allow_pickle=False) as held:
            names = [name for name in held.files if name != "labels"]
            key = "images" if "images" in names else names[0] if len(names) == 1 else ""
            if not key:
                raise ImageError(
                    f"{file} holds {', '.join(held.files) or 'nothing'}; name the array of images 'images'."
                )
            return held[key], held["labels"] if "labels" in held.files else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ImageError(f"{file} is no file of NumPy arrays that can be read ({error}).") from error


def _content(sample: Sample, spec: ModelSpec) -> bytes:
    """What a sample is made of; ImageError if it cannot be read."""
    if sample.row is not None:
        return _image(sample, spec).tobytes()
    data = _bytes(sample)
    decode(data, sample.file, spec)
    return data


def _image(sample: Sample, spec: ModelSpec) -> NDArray[np.float32]:
    """(in_chans, H, W) float32."""
    if sample.row is None:
        return decode(_bytes(sample), sample.file, spec)
    image: NDArray[np.float32] = np.array(_arrays(sample.file)[0][sample.row])
    if not np.isfinite(image).all():
        raise ImageError(f"{sample.name} is not finite: NaN or infinity in an image.")
    return image


def _bytes(sample: Sample) -> bytes:
    try:
        return sample.file.read_bytes()
    except OSError as error:
        raise ImageError(f"{sample.file} cannot be read: {error.strerror}.") from error


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

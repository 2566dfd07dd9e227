# SPDX-License-Identifier: Apache-2.0
"""Names of classes.

imagenet.txt has those of ImageNet's 1000, in the order of the benchmark, as torchvision (BSD-3-Clause) words them.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError

IMAGENET = Path(__file__).with_name("imagenet.txt")
_IMAGENET_CLASSES = 1000


def labels_for(classes: int, given: Path | None) -> tuple[str, ...]:
    """A name for each class: the given file's, ImageNet's for 1000 classes, () for another number of classes.

    Raises:
        InputError: the file cannot be read, or has another number of lines than there are classes.
    """
    if given is None:
        return _lines(IMAGENET) if classes == _IMAGENET_CLASSES else ()
    labels = _lines(given)
    if len(labels) != classes:
        raise InputError(f"{given} names {len(labels)} classes, and the model has {classes}; give a line for each.")
    return labels


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the labels in {path} cannot be read: {error}.") from error

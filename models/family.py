# SPDX-License-Identifier: Apache-2.0
"""What a model family says about itself, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ImageSizeError

if TYPE_CHECKING:
    from torch import nn

    from .name_maps import NameMap

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    The shorter side is resized to `size / crop`, the centre `size` is cut out, values are scaled
    to [0, 1] and normalised by `mean` and `std` per channel.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop: float = 0.875


@dataclass(frozen=True)
class SizeRule:
    """Which image sizes a variant can run at.

    Attributes:
        multiple: heights and widths, in pixels, must be multiples of it.
        smallest: least height and width; 0 is the multiple itself.
        largest: greatest height and width.
        only: the one side that works, of a square image; 0 if the other attributes decide.
        why: reason for an unusual rule, told to who asks for another size.
    """

    multiple: int = 32
    smallest: int = 0
    largest: int = 4096
    only: int = 0
    why: str = ""

    def check(self, model: str, height: int, width: int) -> None:
        """Raise ImageSizeError, naming sizes that work, unless height x width (pixels) is allowed."""
        if all(side == self._nearest(side) for side in (height, width)):
            return
        why = f" ({self.why})" if self.why else ""
        if self.only:
            raise ImageSizeError(f"{model} works at {self.only}x{self.only} only{why}; got {height}x{width}.")
        near = "x".join(str(self._nearest(side)) for side in (height, width))
        raise ImageSizeError(
            f"{model} needs a height and a width that are {self.describe()} up to {self._most}{why}; "
            f"got {height}x{width}. The nearest size that works is {near}."
        )

    def describe(self) -> str:
        """For a table, in a few words."""
        if self.only:
            return f"{self.only} only"
        return f"multiples of {self.multiple}" + (f" from {self.smallest}" if self._least > self.multiple else "")

    @property
    def _least(self) -> int:
        return self.smallest or self.multiple

    @property
    def _most(self) -> int:
        return self.largest - self.largest % self.multiple

    def _nearest(self, side: int) -> int:
        if self.only:
            return self.only
        return min(max(self._least, round(side / self.multiple) * self.multiple), self._most)


@dataclass(frozen=True)
class Variant:
    """One named model of a family.

    Attributes:
        name: the authors' name.
        short_name: what most people type.
        config: the family's own frozen hyperparameters; only the family's `build` reads them.
        parameters: number of parameters with 1000 classes and 3 input channels.
        image_size: side in pixels of the square images the authors' checkpoints expect.
        preprocessing: how an image becomes the input.
        mixer_ops: operators of the metaformer domain that the traced graph holds.
        size_rule: image sizes it can run at.
        isotropic: one resolution throughout, so that there are no stage maps to return.
    """

    name: str
    short_name: str
    config: Any
    parameters: int
    image_size: int = 224
    preprocessing: Preprocessing = Preprocessing()
    mixer_ops: tuple[str, ...] = ()
    size_rule: SizeRule = SizeRule()
    isotropic: bool = False


@dataclass(frozen=True)
class BuildOptions:
    """What a caller may change about a variant."""

    num_classes: int = 1000
    in_chans: int = 3
    features: bool = False
    neck: str = ""


@dataclass(frozen=True)
class Neck:
    """A detection neck: what turns the stage maps into the levels of a pyramid.

    Attributes:
        name: what `neck` and `--neck` take.
        title: in a few words.
        build: makes the module, a tuple of maps -> a tuple of maps, from the channels of the stage maps.
        outputs: names of the levels: p and the power of two of their stride, as detectors call them.
        mixer_ops: operators of the metaformer domain that it adds to the traced graph.
    """

    name: str
    title: str
    build: Callable[[Sequence[int]], nn.Module]
    outputs: tuple[str, ...]
    mixer_ops: tuple[str, ...] = ()


def _no_stages(config: Any) -> tuple[int, ...]:
    raise TypeError(f"{type(config).__name__} does not say the channels of its stages")


@dataclass(frozen=True)
class Family:
    """A model family: its variants, what it can do, and how to build one.

    Attributes:
        name: lower-case identifier.
        title: how the authors write it.
        build: makes the module with uninitialised weights.
        classifiers: names that the linear layer whose rows are the classes may have.
        classifier_only: prefixes of parameters that a features model does not have.
        feature_norms: prefixes of parameters that only a features model has.
        stages: number of stage maps.
        derived: endings of names of tensors in the authors' files that follow from the sizes; not read.
        features: what `features=True` returns, or "" if the family has no stage maps.
        stage_channels: channels of each stage map, from a variant's config; a family with necks needs it.
        necks: detection necks that may follow the stage maps.
        name_maps: other libraries' names of the parameters.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    build: Callable[[Any, BuildOptions], nn.Module]
    classifiers: tuple[str, ...] = ("head",)
    classifier_only: tuple[str, ...] = ("norm.", "head.")
    feature_norms: tuple[str, ...] = ()
    stages: int = 4
    derived: tuple[str, ...] = ()
    features: str = ""
    stage_channels: Callable[[Any], tuple[int, ...]] = _no_stages
    necks: tuple[Neck, ...] = ()
    name_maps: tuple[NameMap, ...] = ()

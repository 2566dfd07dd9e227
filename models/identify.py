# SPDX-License-Identifier: Apache-2.0
"""Which model a checkpoint is of, from the names and shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Literal

from torch import Tensor, nn

from ..errors import CheckpointError
from . import registry
from .building import build
from .checkpoints import Checkpoint
from .dense import NECK_PREFIX, PREFIX
from .family import BuildOptions, Family, Variant
from .name_maps import TITLES, NameMap, to_authors, without_trailing_ones

Kind = Literal["classifier", "backbone", "detector"]
_Shapes = dict[str, tuple[int, ...]]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_CLOSEST = 8
"""Parameter counts that are tried for a file without a classifier, whose head may have been large or small."""
_LIKE = 0.8
"""Share of equal tensors from which a file is called like a model."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint holds.

    Attributes:
        others: variants with the very same tensors, which the file may as well be of.
        kind: with a head, without, or with other parts beside a backbone.
        num_classes: rows of the head; None without.
        in_chans: channels of the images.
        source: "authors", or the library whose names the tensors have (a key of name_maps.TITLES).
        parameters: numbers in the file that are learned, of the backbone and the head.
    """

    family: Family
    variant: Variant
    others: tuple[Variant, ...]
    kind: Kind
    num_classes: int | None
    in_chans: int
    source: str
    parameters: int

    @property
    def note(self) -> str:
        """A sentence on how sure this is, or ""."""
        if not self.others:
            return ""
        others = " and ".join(variant.short_name for variant in self.others)
        same = all(variant.config == self.variant.config for variant in self.others)
        what = "is the same network at another size" if same else "has the same tensors and computes something else"
        return f"Taken for a {self.variant.short_name}; {others} {what}: choose with --model if it is one."


@dataclass(frozen=True)
class _Found:
    """A file's tensors as one family would read them."""

    family: Family
    used: NameMap | None
    shapes: _Shapes
    detector: bool

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], family: Family) -> _Found:
        named, used = to_authors(tensors, family)
        detector = any(name.startswith(PREFIX) for name in named)
        shapes = {
            name.removeprefix(PREFIX): tuple(tensor.shape)
            for name, tensor in named.items()
            if name.startswith(PREFIX) or not detector
        }
        return cls(family, used, shapes, detector and len(shapes) < len(named))

    @cached_property
    def head(self) -> tuple[int, ...]:
        """(classes, inputs) of the classifier, or ()."""
        heads = (self.shapes.get(f"{name}.weight", ()) for name in self.family.classifiers)
        return next((shape for shape in heads if len(shape) >= 2 and all(shape)), ())

    @cached_property
    def stem(self) -> tuple[int, ...]:
        """Shape of the first convolution's weight, or () if this file has none of that name."""
        first = build(self.family, self.family.variants[0], BuildOptions(), device="meta")
        name = next((name for name, parameter in first.named_parameters() if parameter.ndim == 4), "")
        shape = self.shapes.get(name, ())
        return shape if len(shape) == 4 and all(shape) else ()

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for name, shape in self.shapes.items() if not name.endswith(_BUFFERS))

    def distance(self, variant: Variant) -> int:
        """Between the numbers of parameters, as they would be with 1000 classes and 3 input channels."""
        count = self.parameters
        if self.head:
            count += (1000 - self.head[0]) * (math.prod(self.head[1:]) + 1)
        if self.stem:
            count += (3 - self.stem[1]) * (math.prod(self.stem) // self.stem[1])
        return abs(variant.parameters - count)

    def candidates(self) -> Iterator[tuple[Variant, ...]]:
        """The family's variants, those of the nearest number of parameters first; equal ones together."""
        ours = [each for each in self.family.variants if self.used is None or self.used.has(each.name)]
        for _, group in groupby(sorted(ours, key=self.distance), self.distance):
            yield tuple(group)

    def likeness(self, variant: Variant) -> float:
        """Share of equal names and shapes: 1 if they are all the variant's and the variant has no others.

        The variant is taken with this file's classes and channels; without a head, the backbones are compared.
        """
        options = BuildOptions(self.head[0] if self.head else 1000, self.stem[1] if self.stem else 3)
        module = build(self.family, variant, options, device="meta")
        wanted, found = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, self.shapes
        if not self.head:
            wanted, found = self._backbone(wanted), self._backbone(found)
        if self.used is not None:
            wanted, found = _squeezed(wanted), _squeezed(found)
        equal = sum(found.get(name) == shape for name, shape in wanted.items())
        return equal / max(len(found), len(wanted))

    def title(self, variant: Variant) -> str:
        """What to call the file if it is of that variant."""
        with_features = not self.head and self.family.features and not variant.isotropic
        source = f" under the names of {TITLES[self.used.source]}" if self.used else ""
        return variant.short_name + (" with features" if with_features else "") + source

    def _backbone(self, shapes: _Shapes) -> _Shapes:
        other = self.family.classifier_only + self.family.feature_norms
        return {name: shape for name, shape in shapes.items() if not name.startswith(other)}


def identify(read: Checkpoint) -> Identity:
    """The model a checkpoint is of; where several have the same tensors, the one that its file is named after, or the
    first of the registry.

    Raises:
        CheckpointError: it is of no model this tool knows; the message names the nearest.
    """
    for found in (_Found.of(read.tensors, family) for family in registry.FAMILIES):
        if not found.stem or 0 in found.stem:
            continue
        for group in islice(found.candidates(), 1 if found.head else _CLOSEST):
            if fitting := [variant for variant in group if found.likeness(variant) == 1]:
                return _identity(found, fitting, read.path.name)
    raise CheckpointError(
        f"checkpoint {read.path} is not recognised (first tensor {next(iter(read.tensors))})."
        f"{likeliest(read.tensors)} metaformer-export --model NAME --checkpoint FILE says what differs from a model."
    )


def _identity(found: _Found, fitting: list[Variant], file: str) -> Identity:
    stem = file.lower().replace("-", "_")
    named = [variant for variant in fitting if variant.name in stem or variant.short_name in stem]
    chosen = max(named, key=lambda variant: len(variant.name)) if named else fitting[0]
    kind: Kind = "detector" if found.detector else "classifier" if found.head else "backbone"
    return Identity(
        family=found.family,
        variant=chosen,
        others=tuple(variant for variant in fitting if variant is not chosen),
        kind=kind,
        num_classes=found.head[0] if found.head else None,
        in_chans=found.stem[1],
        source=found.used.source if found.used else "authors",
        parameters=found.parameters,
    )


def likeliest(tensors: Mapping[str, Tensor], asked: Variant | None = None) -> str:
    """A sentence naming the registered model whose tensors are most like these, if one is close."""
    best, best_score = "", 0.0
    for found in (_Found.of(tensors, family) for family in registry.FAMILIES):
        few = 3 if found.head else _CLOSEST
        nearest = [variant for group in islice(found.candidates(), few) for variant in group]
        for variant in nearest if found.stem else ():
            score = found.likeness(variant)
            if score > best_score:
                best, best_score = found.title(variant) + _neck_title(tensors, found.family, variant), score
    if best_score < _LIKE:
        return " It is like no model this tool knows; see metaformer-export --list."
    if asked is not None and best.split()[0] == asked.short_name and " and " not in best:
        return f" It looks like a {asked.short_name} that was changed or is not whole."
    return f" It looks like {best}."


def _neck_title(tensors: Mapping[str, Tensor], family: Family, variant: Variant) -> str:
    """ " and NAME" if the file also holds a neck that the family knows."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(NECK_PREFIX)}
    for neck in family.necks if found else ():
        module = build(family, variant, BuildOptions(features=True, neck=neck.name), device="meta")
        wanted = {name: tuple(t.shape) for name, t in module.state_dict().items() if name.startswith(NECK_PREFIX)}
        if wanted == found:
            return f" and {neck.name}"
    return ""


def difference(tensors: Mapping[str, Tensor], module: nn.Module) -> str:
    """The first missing, unexpected and misshapen tensors, or ""."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    whole = {name for name, tensor in module.state_dict().items() if not tensor.is_floating_point()}
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name in wanted if name in found and found[name] != wanted[name]]
    integers = [
        name for name in wanted if name in found and name not in whole and not tensors[name].is_floating_point()
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors missing, first {missing[0]}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected, first {unexpected[0]}")
    if misshapen:
        first = misshapen[0]
        parts.append(f"{len(misshapen)} of another shape, first {first} {found[first]} instead of {wanted[first]}")
    if integers:
        parts.append(f"{len(integers)} of integers instead of floats, first {integers[0]}")
    return "; ".join(parts)


def _squeezed(shapes: _Shapes) -> _Shapes:
    return {name: without_trailing_ones(shape) for name, shape in shapes.items()}

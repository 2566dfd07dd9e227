# SPDX-License-Identifier: Apache-2.0
"""From a name and an optional checkpoint to a module that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..artifacts import ModelSpec
from ..errors import CheckpointError, InputError
from . import random_weights, registry
from .building import build
from .checkpoints import Checkpoint, read_checkpoint
from .dense import NECK_PREFIX, PREFIX, prefixed
from .family import BuildOptions, Family, Variant
from .identify import difference, likeliest
from .name_maps import TITLES, NameMap, reshaped, to_authors
from .sizes import Sizes, described, resized, sizes_that_fit

_MOST = 1_000_000


@dataclass(frozen=True)
class LoadedModel:
    """A module in eval mode, float32, with what is known about it and what the user should be told."""

    module: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """A checkpoint, its tensors under the authors' names, and the map that was needed for that."""

    read: Checkpoint
    tensors: Mapping[str, Tensor]
    used: NameMap | None

    def form(self, variant: Variant) -> Variant:
        """The variant as the checkpoint's library computes it."""
        adapt = None if self.used is None else self.used.adapt
        return variant if adapt is None else replace(variant, config=adapt(variant.config))

    def notes(self, variant: Variant) -> list[str]:
        """That names were mapped, and what else is not the authors'."""
        if self.used is None:
            return []
        title = TITLES[self.used.source]
        said = [f"{title}'s names in {self.read.path.name} mapped to the authors'."]
        if self.form(variant).config != variant.config:
            said.append(f"Computed as {title} computes it, not as the authors do: {self.used.differs}.")
        return said


def load_model(
    name: str,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    features: bool = False,
    neck: str = "",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Build a model and fill it; see `create_model` for the arguments and errors.

    `checkpoint` may also be one that was read before.
    """
    family, variant = registry.find(name)
    variant = resized(variant, sizes or {})
    size = _image_size(image_size, variant)
    variant.size_rule.check(variant.short_name, *size)
    _check(family, variant, num_classes, in_chans, features)
    registry.find_neck(family, variant, neck, features=features)
    source = None if checkpoint is None else _source(checkpoint, family)
    if source is not None and not features:
        num_classes = _adopt_classes(family, source, num_classes)
    options = BuildOptions(1000 if num_classes is None else num_classes, in_chans, features, neck)
    form = variant if source is None else source.form(variant)
    with random_weights.Unfilled(), sizes_that_fit(variant, sizes or {}):
        module = build(family, form, options)
    said = [] if not sizes else [f"Not the {variant.short_name} of its authors: {described(sizes)}."]
    if source is None:
        random_weights.fill(module, seed)
        notes = [
            f"No checkpoint given: weights are random (seed {seed}), every branch alive. The outputs mean nothing."
        ]
    else:
        notes = _load(module, source, family, variant, options)
    weights = f"random, seed {seed}" if source is None else source.read.path.name
    spec = _spec(family, variant, options, size, module, weights, None if source is None else source.read.sha256)
    spec = replace(spec, sizes=dict(sizes or {}))
    module.eval().requires_grad_(False)
    if sizes:
        with sizes_that_fit(variant, sizes):
            module(torch.zeros(1, in_chans, *size))
    return LoadedModel(module, spec, (*said, *notes))


def _check(family: Family, variant: Variant, num_classes: int | None, in_chans: int, features: bool) -> None:
    """InputError for what cannot be built, before anything is."""
    if features and (variant.isotropic or not family.features):
        raise InputError(f"{variant.short_name} has no stage maps to return; leave out features.")
    if features and num_classes is not None:
        raise InputError("a model that returns features has no classes; leave out the number of classes.")
    for what, number in (("classes", num_classes), ("input channels", in_chans)):
        if number is not None and not 1 <= number <= _MOST:
            raise InputError(f"the number of {what} must be at least 1 and at most {_MOST}; got {number}.")


def _spec(
    family: Family,
    variant: Variant,
    options: BuildOptions,
    size: tuple[int, int],
    module: nn.Module,
    weights: str,
    checkpoint_sha256: str | None,
) -> ModelSpec:
    return ModelSpec(
        name=variant.name,
        short_name=variant.short_name,
        family=family.name,
        image_size=size,
        in_chans=options.in_chans,
        num_classes=0 if options.features else options.num_classes,
        features=options.features,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        weights=weights,
        checkpoint_sha256=checkpoint_sha256,
        preprocessing=variant.preprocessing,
        outputs=_outputs(family, variant, options),
        neck=options.neck,
    )


def _outputs(family: Family, variant: Variant, options: BuildOptions) -> tuple[str, ...]:
    if neck := registry.find_neck(family, variant, options.neck, features=options.features):
        return neck.outputs
    return tuple(f"stage{i}" for i in range(family.stages)) if options.features else ("logits",)


def _image_size(image_size: int | tuple[int, int] | None, variant: Variant) -> tuple[int, int]:
    if image_size is None:
        image_size = variant.image_size
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


def _source(checkpoint: str | Path | Checkpoint, family: Family) -> _Source:
    read = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    return _Source(read, *to_authors(read.tensors, family))


def _adopt_classes(family: Family, source: _Source, asked: int | None) -> int | None:
    heads = (source.tensors.get(f"{name}.weight") for name in family.classifiers)
    head = next((tensor for tensor in heads if tensor is not None), None)
    if head is None or head.ndim < 2 or head.shape[0] < 1:
        return asked  # the comparison of all tensors says what is wrong
    classes = int(head.shape[0])
    if asked is not None and asked != classes:
        raise CheckpointError(
            f"checkpoint {source.read.path} has {classes} classes, not {asked}; "
            "leave out the number of classes to keep its head."
        )
    return classes


def _load(module: nn.Module, source: _Source, family: Family, variant: Variant, options: BuildOptions) -> list[str]:
    """Load strictly, or raise CheckpointError; returns what the user should know."""
    read, tensors = source.read, source.tensors
    notes = source.notes(variant)
    if options.features:
        if options.neck and not any(name.startswith(NECK_PREFIX) for name in tensors):
            raise CheckpointError(
                f"checkpoint {read.path} holds no weights of a neck (under {NECK_PREFIX}*), and none are made up; "
                f"give the detector's checkpoint, or leave out the neck {options.neck}."
            )
        tensors, said = _dense_tensors(tensors, module, family, options)
        notes += said
    if source.used is not None:
        tensors = reshaped(tensors, module.state_dict())
    if problem := difference(tensors, module):
        way_out = _way_out(tensors, module, family, options) or likeliest(read.tensors, variant)
        raise CheckpointError(f"checkpoint {read.path} is not a whole {variant.short_name}: {problem}.{way_out}")
    if broken := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise CheckpointError(f"checkpoint {read.path} holds values that are not finite, first in {broken}.")
    module.load_state_dict(dict(tensors), strict=True)
    if read.wrapper:
        notes.insert(0, f"Weights taken from {read.wrapper!r} in {read.path.name}.")
    if options.num_classes != 1000 and not options.features:
        notes.append(f"The checkpoint's head of {options.num_classes} classes is kept.")
    if low := [name for name in read.stored_as if name in ("float16", "bfloat16")]:
        notes.append(f"{read.path.name} stores {' and '.join(low)}; read into float32.")
    return notes


def _way_out(tensors: Mapping[str, Tensor], module: nn.Module, family: Family, options: BuildOptions) -> str:
    """What to ask for instead, if the file is a good one of something else; else ""."""
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    head = [name for name in wanted if name.startswith(family.classifier_only)]
    if missing == head and not options.features:
        return " It has no classifier: add --features (features=True) to take its stage maps."
    changed = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if not missing and len(changed) == 1 and tensors[changed[0]].ndim == 4:
        channels = tensors[changed[0]].shape[1]
        if channels != options.in_chans:
            return (
                f" Its images have {channels} channels: from Python, create_model(..., in_chans={channels}) loads it."
            )
    return ""


def _dense_tensors(
    tensors: Mapping[str, Tensor], module: nn.Module, family: Family, options: BuildOptions
) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors of a detector's or a classifier's checkpoint, and the neck's if one is asked for."""
    notes = []
    parts = (PREFIX, NECK_PREFIX) if options.neck else (PREFIX,)
    wanted = module.state_dict()
    ours = prefixed(tensors)
    other = sorted({name.split(".")[0] for name in ours if not name.startswith(parts)})
    if other:
        whole = "the backbone and the neck, and" if options.neck else "the backbone and"
        notes.append(f"Not part of {whole} left out: {', '.join(other)}.")
    ours = {name: tensor for name, tensor in ours.items() if name.startswith(parts)}
    norms = [name for name in wanted if name.removeprefix(PREFIX).startswith(family.feature_norms)]
    if any(name in ours for name in norms):
        return ours, notes
    head = tuple(PREFIX + part for part in family.classifier_only)
    body = {name: tensor for name, tensor in ours.items() if not name.startswith(head)}
    said = ["a classifier's checkpoint: its head is left out"] if len(body) < len(ours) else []
    said += ["the norms of the stage maps are plain (weight 1, bias 0)"] if norms else []
    notes += ["; ".join(said).capitalize() + "."] if said else []
    plain = {name: torch.full(wanted[name].shape, float(name.endswith("weight"))) for name in norms}
    return body | plain, notes

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
from .checkpoints import Checkpoint, read_checkpoint
from .dense import NECK_PREFIX, PREFIX, DenseModel, prefixed
from .family import BuildOptions, Family, Variant

_MOST = 1_000_000


@dataclass(frozen=True)
class LoadedModel:
    """A module in eval mode, float32, with what is known about it and what the user should be told."""

    module: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...]


def load_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    features: bool = False,
    neck: str = "",
    seed: int = 0,
) -> LoadedModel:
    """Build a model and fill it; see `create_model` for the arguments and errors."""
    family, variant = registry.find(name)
    size = _image_size(image_size, variant)
    variant.size_rule.check(variant.short_name, *size)
    _check(family, variant, num_classes, in_chans, features)
    registry.find_neck(family, variant, neck, features=features)
    read = None if checkpoint is None else read_checkpoint(checkpoint)
    if read is not None and not features:
        num_classes = _adopt_classes(family, read, num_classes)
    options = BuildOptions(1000 if num_classes is None else num_classes, in_chans, features, neck)
    module = build(family, variant, options)
    if read is None:
        random_weights.fill(module, seed)
        notes = [
            f"No checkpoint given: weights are random (seed {seed}), every branch alive. The outputs mean nothing."
        ]
    else:
        notes = _load(module, read, family, variant, options)
    weights = f"random, seed {seed}" if read is None else read.path.name
    spec = _spec(family, variant, options, size, module, weights, None if read is None else read.sha256)
    return LoadedModel(module.eval().requires_grad_(False), spec, tuple(notes))


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


def build(family: Family, variant: Variant, options: BuildOptions, device: str = "cpu") -> nn.Module:
    """The bare module of a variant, parameters as the family initialises them."""
    with torch.device(device):
        module = family.build(variant.config, options)
        if not options.features:
            return module
        neck = registry.find_neck(family, variant, options.neck, features=True)
        return DenseModel(module, None if neck is None else neck.build(family.stage_channels(variant.config)))


def _image_size(image_size: int | tuple[int, int] | None, variant: Variant) -> tuple[int, int]:
    if image_size is None:
        image_size = variant.image_size
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


def _adopt_classes(family: Family, read: Checkpoint, asked: int | None) -> int | None:
    heads = (read.tensors.get(f"{name}.weight") for name in family.classifiers)
    head = next((tensor for tensor in heads if tensor is not None), None)
    if head is None or head.ndim < 2 or head.shape[0] < 1:
        return asked  # the comparison of all tensors says what is wrong
    classes = int(head.shape[0])
    if asked is not None and asked != classes:
        raise CheckpointError(
            f"checkpoint {read.path} has {classes} classes, not {asked}; "
            "leave out the number of classes to keep its head."
        )
    return classes


def _load(module: nn.Module, read: Checkpoint, family: Family, variant: Variant, options: BuildOptions) -> list[str]:
    """Load strictly, or raise CheckpointError; returns what the user should know."""
    notes = []
    tensors: Mapping[str, Tensor] = read.tensors
    if options.features:
        if options.neck and not any(name.startswith(NECK_PREFIX) for name in tensors):
            raise CheckpointError(
                f"checkpoint {read.path} holds no weights of a neck (under {NECK_PREFIX}*), and none are made up; "
                f"give the detector's checkpoint, or leave out the neck {options.neck}."
            )
        tensors, said = _dense_tensors(tensors, module, family, options)
        notes += said
    problem = _difference(tensors, module)
    if problem:
        raise CheckpointError(
            f"checkpoint {read.path} is not a {variant.short_name}: {problem}."
            f"{_likeliest(read.tensors, variant, options)}"
        )
    if broken := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise CheckpointError(f"checkpoint {read.path} holds values that are not finite, first in {broken}.")
    module.load_state_dict(dict(tensors), strict=True)
    if read.wrapper:
        notes.insert(0, f"Weights taken from {read.wrapper!r} in {read.path.name}.")
    if options.num_classes != 1000 and not options.features:
        notes.append(f"The checkpoint's head of {options.num_classes} classes is kept.")
    if "float16" in read.stored_as or "bfloat16" in read.stored_as:
        notes.append(f"{read.path.name} stores {', '.join(read.stored_as)}; read into float32.")
    return notes


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
    new = [name for name in wanted if name.removeprefix(PREFIX).startswith(family.feature_norms) and name not in ours]
    head = tuple(PREFIX + part for part in family.classifier_only)
    if new and any(name.startswith(head) for name in ours):
        ours = {name: tensor for name, tensor in ours.items() if not name.startswith(head)}
        ours |= {name: torch.full(wanted[name].shape, float(name.endswith("weight"))) for name in new}
        notes.append(
            "A classifier's checkpoint: its head is left out; the norms of the stage maps are plain (weight 1, bias 0)."
        )
    return ours, notes


def _difference(tensors: Mapping[str, Tensor], module: nn.Module) -> str:
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


def _likeliest(tensors: Mapping[str, Tensor], variant: Variant, options: BuildOptions) -> str:
    """A sentence naming the registered model whose tensors are most like these, if one is close."""
    found = {name.removeprefix(PREFIX): tuple(tensor.shape) for name, tensor in tensors.items()}
    best, best_score = "", 0.0
    for family, other in registry.variants():
        for form in _forms(family, other, options, necks=any(name.startswith(NECK_PREFIX) for name in tensors)):
            module = build(family, other, form, device="meta")
            wanted = {name.removeprefix(PREFIX): tuple(t.shape) for name, t in module.state_dict().items()}
            equal = sum(found.get(name) == shape for name, shape in wanted.items())
            score = equal / max(len(found), len(wanted))
            if score > best_score:
                best, best_score = _title(other, form), score
    if best_score < 0.8:
        return " It is like no model this tool knows; see metaformer-export --list."
    if best.split()[0] == variant.short_name and (not options.neck or best == _title(variant, options)):
        return f" It looks like a {variant.short_name} that was changed or is not whole."
    return f" It looks like {best}."


def _forms(family: Family, variant: Variant, options: BuildOptions, *, necks: bool) -> list[BuildOptions]:
    """What can be built of a variant: with logits, with stage maps, and with each neck if `necks` says so."""
    forms = [replace(options, features=False, neck="")]
    if family.features and not variant.isotropic:
        names = ["", *(neck.name for neck in family.necks)] if necks else [""]
        forms += [replace(options, features=True, neck=name) for name in names]
    return forms


def _title(variant: Variant, options: BuildOptions) -> str:
    neck = f" and {options.neck}" if options.neck else ""
    return variant.short_name + (f" with features{neck}" if options.features else "")

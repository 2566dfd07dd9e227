# SPDX-License-Identifier: Apache-2.0
"""All families, in the order that `--list` shows them. A new family is one import and one line."""

from __future__ import annotations

import difflib

from ..errors import InputError, UnknownModelError
from . import (
    acmix_resnet,
    acmix_swin,
    boat_cswin,
    boat_swin,
    focalnet,
    hornet,
    metaformer_baselines,
    poolformer,
)
from .family import Family, Neck, Variant

FAMILIES: tuple[Family, ...] = (
    poolformer.FAMILY,
    metaformer_baselines.FAMILY,
    hornet.FAMILY,
    focalnet.FAMILY,
    boat_swin.FAMILY,
    boat_cswin.FAMILY,
    acmix_swin.FAMILY,
    acmix_resnet.FAMILY,
)


def variants() -> list[tuple[Family, Variant]]:
    """Every variant with its family."""
    return [(family, variant) for family in FAMILIES for variant in family.variants]


def describe(family: Family, variant: Variant) -> dict[str, object]:
    """A variant as plain data, for JSON."""
    return {
        "name": variant.name,
        "short_name": variant.short_name,
        "family": family.name,
        "parameters": variant.parameters,
        "image_size": variant.image_size,
        "sizes": variant.size_rule.describe(),
        "features": "" if variant.isotropic else family.features,
        "necks": [] if variant.isotropic else [_describe_neck(neck) for neck in family.necks],
        "mixer_ops": list(variant.mixer_ops),
    }


def _describe_neck(neck: Neck) -> dict[str, object]:
    return {
        "name": neck.name,
        "title": neck.title,
        "outputs": list(neck.outputs),
        "mixer_ops": list(neck.mixer_ops),
    }


def find_neck(family: Family, variant: Variant, name: str, *, features: bool) -> Neck | None:
    """The neck of that name, None for ""; InputError says what is possible if it cannot be had."""
    if not name:
        return None
    necks = () if variant.isotropic else family.necks
    known = " or ".join(neck.name for neck in necks)
    if not known:
        others = [f"{each.title} ({', '.join(neck.name for neck in each.necks)})" for each in FAMILIES if each.necks]
        raise InputError(f"{variant.short_name} has no necks; leave out {name}. Necks come with {', '.join(others)}.")
    found = next((neck for neck in necks if neck.name == name), None)
    if found is None:
        raise InputError(f"unknown neck {name!r}; {variant.short_name} takes {known}.")
    if not features:
        raise InputError(f"the neck {name} works on stage maps; ask for features (--features) too, or leave it out.")
    return found


def find(name: str) -> tuple[Family, Variant]:
    """The family and variant of a full or short name; UnknownModelError suggests the nearest names."""
    wanted = name.strip().lower().replace("-", "_")
    for family, variant in variants():
        if wanted in (variant.name, variant.short_name):
            return family, variant
    known = sorted({n for _, variant in variants() for n in (variant.name, variant.short_name)})
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "See metaformer-export --list."
    raise UnknownModelError(f"unknown model {name!r}. {hint}")

# SPDX-License-Identifier: Apache-2.0
"""All families, in the order that `--list` shows them. A new family is one import and one line."""

from __future__ import annotations

import difflib

from ..errors import UnknownModelError
from . import focalnet, hornet, metaformer_baselines, poolformer
from .family import Family, Variant

FAMILIES: tuple[Family, ...] = (
    hornet.FAMILY,
    poolformer.FAMILY,
    metaformer_baselines.FAMILY,
    focalnet.FAMILY,
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
        "mixer_ops": list(variant.mixer_ops),
    }


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

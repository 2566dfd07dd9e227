# SPDX-License-Identifier: Apache-2.0
"""Networks of a family between or below its variants: other depths and widths than the authors'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace

from ..errors import InputError
from .family import Variant

NAMES = ("width", "dims", "depths", "heads")
"""What may be given, where a family's configuration has it."""
_LARGEST = 65536

Sizes = Mapping[str, int | tuple[int, ...]]
"""For instance {"width": 16, "depths": (1, 1, 2, 1)}."""


def resized(variant: Variant, sizes: Sizes) -> Variant:
    """The variant with other numbers in its configuration.

    Raises:
        InputError: its configuration has no such number, or another count of them, or one that is not positive.
    """
    if not sizes:
        return variant
    known = _known(variant)
    for name, value in sizes.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it comes as it is"
            raise InputError(f"{variant.short_name} has no {name!r} to set; {has}.")
        usual = known[name]
        if isinstance(usual, tuple):
            fits, count = isinstance(value, tuple) and len(value) == len(usual), f"{len(usual)} numbers"
        else:
            fits, count = isinstance(value, int), "one number"
        if not fits:
            raise InputError(f"{name} of {variant.short_name} takes {count}, for instance {_text(usual)}.")
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(1 <= number <= _LARGEST for number in numbers):
            raise InputError(
                f"{name} of {variant.short_name} must be at least 1 and at most {_LARGEST}; got {_text(value)}."
            )
    return replace(variant, config=replace(variant.config, **sizes))


@contextmanager
def sizes_that_fit(variant: Variant, sizes: Sizes) -> Iterator[None]:
    """Inside, a network is built or run; InputError if that fails where sizes are given, which then do not fit."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError) as error:
        if not sizes:
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"{variant.short_name} cannot be built with {described(sizes)}: {reason}.") from error


def described(sizes: Sizes) -> str:
    """For instance "width 16, depths 1,1,2,1"."""
    return ", ".join(f"{name} {_text(value)}" for name, value in sizes.items())


def _known(variant: Variant) -> dict[str, int | tuple[int, ...]]:
    if not is_dataclass(variant.config):
        return {}
    has = {field.name for field in fields(variant.config)}
    return {name: getattr(variant.config, name) for name in NAMES if name in has}


def _text(value: int | tuple[int, ...]) -> str:
    return ",".join(str(number) for number in value) if isinstance(value, tuple) else str(value)

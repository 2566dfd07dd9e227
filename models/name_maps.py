# SPDX-License-Identifier: Apache-2.0
"""From other libraries' parameter names to the authors', as data of a family."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .dense import PREFIX

if TYPE_CHECKING:
    from .family import Family

Replacement = str | Callable[[re.Match[str]], str]
TITLES = {"timm": "timm", "huggingface": "Hugging Face"}


@dataclass(frozen=True)
class NameMap:
    """How one library calls a family's parameters.

    Attributes:
        source: a key of TITLES.
        recognised_by: patterns; a state dict is this library's if each matches the whole of some name.
        rules: pattern and replacement, as re.sub takes them; every rule is applied to every name, in order.
        variants: pattern of the names of the variants that the library has; the others' layout may be the same.
        adapt: from a variant's config to that of the library's own form of it, where that computes something else.
        differs: what is different then, told to the user.
    """

    source: str
    recognised_by: tuple[str, ...]
    rules: tuple[tuple[str, Replacement], ...]
    variants: str = ""
    adapt: Callable[[Any], Any] | None = None
    differs: str = ""

    def has(self, variant: str) -> bool:
        """Whether the library has a variant of that name."""
        return not self.variants or re.fullmatch(self.variants, variant) is not None

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether a state dict with these names comes from this library."""
        names = list(names)
        return all(any(re.fullmatch(pattern, name) for name in names) for pattern in self.recognised_by)

    def rename(self, name: str) -> str:
        """The authors' name of a parameter."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name


def numbered(template: str, times: int = 1, plus: int = 0) -> Callable[[re.Match[str]], str]:
    """A replacement: `template` with `times * n + plus` in place of {}, n the number in the pattern's first group."""
    return lambda match: template.format(times * int(match[1]) + plus)


def to_authors(tensors: Mapping[str, Tensor], family: Family) -> tuple[dict[str, Tensor], NameMap | None]:
    """The tensors under the family's authors' names, less what is derived from others, and the map that did it.

    None if the names are no other library's. A detector's `backbone.` prefix stays; its other parts keep their names.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(family.derived)}
    detector = any(name.startswith(PREFIX) for name in kept)
    inner = [name.removeprefix(PREFIX) for name in kept if name.startswith(PREFIX) or not detector]
    used = next((each for each in family.name_maps if each.recognises(inner)), None)
    if used is None:
        return kept, None
    renamed = {_renamed(name, used, detector): tensor for name, tensor in kept.items()}
    return (renamed, used) if len(renamed) == len(kept) else (kept, None)  # names that collide are nobody's


def _renamed(name: str, used: NameMap, detector: bool) -> str:
    if not detector:
        return used.rename(name)
    return PREFIX + used.rename(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name


def reshaped(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those whose shape differs from the wanted one by trailing 1s only in the wanted shape.

    A pointwise convolution's weight (out, in, 1, 1) and a linear layer's (out, in) hold the same numbers.
    """

    def fitted(name: str, tensor: Tensor) -> Tensor:
        target = wanted.get(name)
        if target is None or without_trailing_ones(tensor.shape) != without_trailing_ones(target.shape):
            return tensor
        return tensor.reshape(target.shape)

    return {name: fitted(name, tensor) for name, tensor in tensors.items()}


def without_trailing_ones(shape: Iterable[int]) -> tuple[int, ...]:
    """(96, 64, 1, 1) -> (96, 64)."""
    sides = list(shape)
    while sides and sides[-1] == 1:
        sides.pop()
    return tuple(sides)

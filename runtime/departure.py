# SPDX-License-Identifier: Apache-2.0
"""Which module of a graph is the first that computes something else than rounding explains.

Errors grow from module to module by themselves: differences of near numbers, products and norms magnify what they are
given. So each handed-over value is held against its error in a graph of known rounding, which is magnified in the same
places, and a module departs where the ratio of the two leaps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Arithmetic
from ..errors import ParityError
from .handovers import Handover, in_chunks
from .session import Session

Show = Callable[[Sequence[str]], tuple[Session, tuple[str, ...]]]
"""Opens a graph whose outputs are the values of these names; gives the clusterings that it takes as well."""
LIMIT = 4.0
"""Of a departure. Sound files of seven small trained models came to 1.5 in floating point, to 1.9 in INT8 on images
like those that they were calibrated with, and to 2.8 on others, unless their ranges cut values off.
"""
_BUDGET = 256 * 2**20
"""Bytes of one graph's values that are held at once."""


@dataclass(frozen=True)
class Rounding:
    """What a kind of arithmetic does by itself.

    Attributes:
        share: of the error in the graph of known rounding.
        least: error, over the spread, that a value may have in any case.
    """

    share: float
    least: float


ROUNDING: Mapping[Arithmetic, Rounding] = {
    # Against every value rounded to bfloat16. Float16 and TF32 have three bits more; what float32 leaves in its sums
    # was 2^-15 to 2^-13.4 of it in seven small trained models.
    "fp32": Rounding(2**-13, 2**-22),
    "tf32": Rounding(2**-3, 2**-12),
    "fp16": Rounding(2**-3, 2**-12),
    "bf16": Rounding(1.0, 2**-9),
    # Against the same layers quantised with the ranges of these very images.
    "int8": Rounding(1.0, 1 / 127),
}


@dataclass(frozen=True)
class Deviation:
    """One handed-over value against the float32 graph.

    Attributes:
        error: root mean square of the differences over the reference's spread; infinite where it is not finite.
        explained: error that rounding alone would leave there.
        increase: error over the largest of what the value is computed from, or over the least that counts.
        departure: error over what is explained, over the largest such ratio of what the value is computed from, or
            over 1 if all are smaller.
    """

    module: str
    value: str
    error: float
    explained: float
    increase: float
    departure: float


def measured(
    reference: Show,
    known: Show,
    delivered: Show,
    found: Sequence[Handover],
    images: NDArray[np.float32],
    given: Mapping[str, NDArray[np.int64]],
    told: Callable[[int], object] = int,
    budget: int = _BUDGET,
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors against the reference of all handovers, by name: in the graph of known rounding, and as delivered.

    One session at a time is open, and the values of two graphs that fit into the budget are in memory.

    Args:
        images: (B, C, H, W), in one batch.
        given: clusterings by module, the same for all graphs.
        told: called with the number of handovers that are done.
    """
    errors: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for chunk in in_chunks(found, len(images), budget):
        names = [each.name for each in chunk]
        want = _values(reference, names, images, given)
        for show, errors_of in zip((known, delivered), errors, strict=True):
            got = _values(show, names, images, given)
            errors_of |= {name: error(name, want[name], got.pop(name)) for name in names}
        told(len(chunk))
    return errors


def _values(
    show: Show, names: Sequence[str], images: NDArray[np.float32], given: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.float32]]:
    session, modules = show(names)
    return dict(zip(names, session(images, {module: given[module] for module in modules}), strict=True))


@np.errstate(invalid="ignore", over="ignore")  # infinities and NaN are a result here
def error(name: str, want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Root mean square difference over the spread, where the reference is finite; infinite where only `got` is not.

    Raises:
        ParityError: the shapes differ.
    """
    if want.shape != got.shape:
        raise ParityError(f"{name} has shape {got.shape}, in the float32 graph {want.shape}.")
    finite = np.isfinite(want)
    reference, other = want[finite].astype(np.float64), got[finite].astype(np.float64)
    if not reference.size:
        return 0.0
    rms = float(np.sqrt(np.mean((other - reference) ** 2)) / (reference.std() or 1.0))
    return rms if np.isfinite(rms) else float("inf")


def deviations(
    found: Sequence[Handover], known: Mapping[str, float], delivered: Mapping[str, float], rounding: Rounding
) -> tuple[Deviation, ...]:
    """What the errors of all handovers mean, in their order.

    Args:
        known, delivered: errors by name, as `measured` gives them.
    """
    explained = {each.name: max(rounding.share * known[each.name], rounding.least) for each in found}
    ratios = {name: delivered[name] / explained[name] for name in explained}
    return tuple(
        Deviation(
            each.module,
            each.name,
            delivered[each.name],
            explained[each.name],
            _over(delivered[each.name], max((delivered[name] for name in each.reads), default=0.0), rounding.least),
            _over(ratios[each.name], max((ratios[name] for name in each.reads), default=0.0), 1.0),
        )
        for each in found
    )


def first_departed(found: Sequence[Deviation]) -> Deviation | None:
    """The first in the graph's order whose departure is above the limit."""
    return next((each for each in found if each.departure > LIMIT), None)


def by_module(found: Sequence[Deviation]) -> tuple[Deviation, ...]:
    """Of each module the value that departs most, in the order in which the modules begin to hand over."""
    worst: dict[str, Deviation] = {}
    for each in found:
        if each.module not in worst or each.departure > worst[each.module].departure:
            worst[each.module] = each
    return tuple(worst.values())


def _over(now: float, before: float, least: float) -> float:
    """A ratio; 1 where both are infinite, as nothing is added then."""
    return 1.0 if now == before == float("inf") else now / max(before, least)

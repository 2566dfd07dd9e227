# SPDX-License-Identifier: Apache-2.0
"""From a histogram of a tensor's values to the range that eight bits are spent on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Method

METHODS: tuple[Method, ...] = get_args(Method)
BINS = 2048
PERCENTILE = 99.99
"""Of all values that stay inside, in percent."""
_LEVELS = 128
"""Magnitudes that a signed byte tells apart."""
_SHARES = np.linspace(0.2, 1.0, 81)
"""Of the whole range, for the search of the least error."""


@dataclass(frozen=True)
class Histogram:
    """Counts (BINS,) of values in bins of one width between `low` and `high`, which were seen."""

    counts: NDArray[np.int64]
    low: float
    high: float

    @property
    def middles(self) -> NDArray[np.float64]:
        """Of the bins."""
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        middles: NDArray[np.float64] = (edges[1:] + edges[:-1]) / 2
        return middles


def minmax(histogram: Histogram) -> tuple[float, float]:
    """All values that were seen."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> tuple[float, float]:
    """All but the outermost values, as many on either side."""
    share = histogram.counts.cumsum() / histogram.counts.sum()
    outside = (1 - PERCENTILE / 100) / 2
    width = (histogram.high - histogram.low) / len(histogram.counts)
    first, last = np.searchsorted(share, [outside, 1 - outside])
    return float(histogram.low + width * first), float(histogram.low + width * (last + 1))


def mse(histogram: Histogram) -> tuple[float, float]:
    """The range with the least mean squared error, of rounding inside and cutting off outside.

    Both ends move towards zero, or towards each other where zero is outside, in equal shares. Rounding to a step
    costs the twelfth of its square.
    """
    centre = min(max(0.0, histogram.low), histogram.high)
    lows = centre + (histogram.low - centre) * _SHARES[:, None]
    highs = centre + (histogram.high - centre) * _SHARES[:, None]
    values = histogram.middles
    cut = np.maximum(lows - values, 0) + np.maximum(values - highs, 0)
    rounded = ((highs - lows) / (2 * _LEVELS - 1)) ** 2 / 12
    errors = (histogram.counts * np.where(cut > 0, cut**2, rounded)).sum(1)
    best = int(errors.argmin())
    return float(lows[best, 0]), float(highs[best, 0])


def entropy(histogram: Histogram) -> tuple[float, float]:
    """The range whose quantised distribution of magnitudes loses the least information: the lowest Kullback-Leibler
    divergence from the distribution itself, cut off at the same place.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    if histogram.low == histogram.high:
        return histogram.low, histogram.high
    magnitudes, limit = _magnitudes(histogram)
    tail = magnitudes[::-1].cumsum()[::-1]
    best, least = len(magnitudes), np.inf
    for bins in range(_LEVELS, len(magnitudes) + 1):
        inside = magnitudes[:bins]
        if not inside.any():
            continue
        reference = inside.copy()
        reference[-1] += tail[bins] if bins < len(tail) else 0
        divergence = _divergence(reference, _merged(inside))
        if divergence < least:
            best, least = bins, divergence
    threshold = limit * best / len(magnitudes)
    return max(histogram.low, -threshold), min(histogram.high, threshold)


RANGES: Mapping[Method, Callable[[Histogram], tuple[float, float]]] = {
    "minmax": minmax,
    "entropy": entropy,
    "percentile": percentile,
    "mse": mse,
}


def _magnitudes(histogram: Histogram) -> tuple[NDArray[np.float64], float]:
    """Counts of |value| in BINS bins up to the largest, and that."""
    limit = max(abs(histogram.low), abs(histogram.high))
    bins = len(histogram.counts)
    place = np.minimum((np.abs(histogram.middles) * (bins / limit)).astype(np.int64), bins - 1)
    return np.bincount(place, histogram.counts, bins).astype(np.float64), limit


def _merged(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts in _LEVELS levels, spread again over the bins of each that hold any."""
    level = np.arange(len(counts)) * _LEVELS // len(counts)
    filled = counts > 0
    held = np.bincount(level, counts, _LEVELS)
    among = np.maximum(np.bincount(level, filled, _LEVELS), 1)
    spread: NDArray[np.float64] = np.where(filled, (held / among)[level], 0.0)
    return spread


def _divergence(reference: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    """Kullback-Leibler, of two sets of counts; where only the reference has any, a millionth of a count stands in."""
    where = reference > 0
    p = reference[where] / reference.sum()
    q = np.maximum(got[where], 1e-6) / got.sum()
    return float((p * np.log(p / q)).sum())

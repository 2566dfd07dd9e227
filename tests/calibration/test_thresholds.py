# SPDX-License-Identifier: Apache-2.0
"""Ranges from histograms: each method against what it promises, computed another way."""

from __future__ import annotations

import numpy as np
import pytest

from metaformer_export.calibration.thresholds import BINS, METHODS, RANGES, Histogram

RANDOM = np.random.RandomState(0)
GAUSS = RANDOM.standard_normal(400_000)
OUTLIERS = np.concatenate([GAUSS, [40.0, -35.0, 38.0]])
POSITIVE = np.abs(RANDOM.standard_normal(400_000)) * 3
SHIFTED = 10 + RANDOM.standard_normal(400_000)


def histogram(values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    return Histogram(np.histogram(values, BINS, (low, high))[0], low, high)


def quantised(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """As an unsigned byte with a zero point holds them."""
    step = (high - low) / 255
    return np.clip(np.rint((values - low) / step), 0, 255) * step + low


@pytest.mark.parametrize("name", ["GAUSS", "OUTLIERS", "POSITIVE", "SHIFTED"])
@pytest.mark.parametrize("method", METHODS)
def test_a_range_stays_within_what_was_seen(method, name: str) -> None:
    values = globals()[name]
    low, high = RANGES[method](histogram(values))
    width = (values.max() - values.min()) / BINS
    assert values.min() - width <= low < high <= values.max() + width


@pytest.mark.parametrize("value", [0.0, 5.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_one_value_has_that_as_its_range(method, value: float) -> None:
    counts = np.zeros(BINS, np.int64)
    counts[0] = 6
    assert RANGES[method](Histogram(counts, value, value)) == (value, value)


def test_minmax_takes_all() -> None:
    assert RANGES["minmax"](histogram(OUTLIERS)) == (-35.0, 40.0)


def test_a_percentile_leaves_out_the_outermost_of_both_sides() -> None:
    low, high = RANGES["percentile"](histogram(GAUSS))
    width = (GAUSS.max() - GAUSS.min()) / BINS
    assert low == pytest.approx(np.quantile(GAUSS, 0.00005), abs=2 * width)
    assert high == pytest.approx(np.quantile(GAUSS, 0.99995), abs=2 * width)


@pytest.mark.parametrize("values", [OUTLIERS, POSITIVE, GAUSS], ids=["outliers", "positive", "gauss"])
def test_the_least_error_is_no_more_than_that_of_any_other_share(values: np.ndarray) -> None:
    low, high = RANGES["mse"](histogram(values))
    error = np.mean((quantised(values, low, high) - values) ** 2)
    for share in (0.3, 0.5, 0.7, 0.9, 1.0):
        other = np.mean((quantised(values, share * values.min(), share * values.max()) - values) ** 2)
        assert error < 1.02 * other


def test_three_outliers_do_not_decide_the_steps_of_all_others() -> None:
    error = {
        method: np.sqrt(np.mean((quantised(GAUSS, *RANGES[method](histogram(OUTLIERS))) - GAUSS) ** 2))
        for method in METHODS
    }
    assert error["minmax"] > 0.08
    for method in ("entropy", "percentile", "mse"):
        assert error[method] < 0.6 * error["minmax"]


def test_entropy_keeps_all_levels_of_what_is_spread_evenly() -> None:
    even = RANDOM.uniform(-1, 1, 1_000_000)
    low, high = RANGES["entropy"](histogram(even))
    assert (low, high) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02))


def test_entropy_agrees_with_a_written_out_search() -> None:
    """Candidate by candidate, level by level, as the slides say it."""
    values = np.concatenate([RANDOM.laplace(size=20_000), [12.0]])
    seen = histogram(values)
    limit = np.abs(values).max()
    counts = np.zeros(BINS)
    for middle, count in zip(seen.middles, seen.counts, strict=True):
        counts[min(int(abs(middle) / limit * BINS), BINS - 1)] += count

    def divergence(bins: int) -> float:
        p = counts[:bins].copy()
        p[-1] += counts[bins:].sum()
        q = np.zeros(bins)
        for level in range(128):
            filled = [i for i in range(bins) if i * 128 // bins == level and counts[i] > 0]
            for i in filled:
                q[i] = sum(counts[j] for j in filled) / len(filled)
        kept = p > 0
        p, q = p[kept] / p.sum(), np.maximum(q[kept], 1e-6) / q.sum()
        return float((p * np.log(p / q)).sum())

    low, high = RANGES["entropy"](seen)
    reached = round(max(-low, high) / limit * BINS)
    assert reached < 0.9 * BINS  # the outlier is cut off
    assert divergence(reached) <= min(divergence(bins) for bins in range(128, BINS + 1, 16)) * (1 + 1e-9)

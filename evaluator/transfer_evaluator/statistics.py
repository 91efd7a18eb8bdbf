"""Intervals from per-item scores: percentile bootstrap over items, plain and paired.

Every score of the table is a ratio of two sums over items: nats over bytes for bits per byte, right answers over questions
for accuracy. So one estimator serves all: draw items with replacement, sum, divide (Efron and Tibshirani, An Introduction
to the Bootstrap, chapters 13 and 8.3 for pairs). Documents differ in length; a mean of per-document ratios would give a
title the weight of a chapter, the ratio of sums does not.

Shapes: N items, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 2000
LEVEL = 0.95
CHUNK_DRAWS = 4_000_000
"""Draws held in memory at once: 32 MB of indices."""


def same(value: Floats) -> Floats:
    """No transformation."""
    return value


def ratio(numerator_N: Floats, denominator_N: Floats, transform: Callable[[Floats], Floats] = same) -> float:
    """`transform` of the ratio of sums."""
    return float(transform(np.asarray(np.sum(numerator_N) / np.sum(denominator_N))))


def ratio_interval(
    numerator_N: Floats, denominator_N: Floats, *, transform: Callable[[Floats], Floats] = same, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """95 % percentile interval of a ratio of sums; items are resampled.

    Args:
        numerator_N: what is summed, such as nats of each document.
        denominator_N: what it is divided by, such as bytes of each document; positive. Ones for a mean.
        transform: applied to every resampled ratio, such as `numpy.exp`.
        seed: of the resampling.
        resamples: R.
    """
    sums_R2 = _resampled_sums(np.stack([numerator_N, denominator_N], axis=1), seed, resamples)
    return _percentiles(transform(sums_R2[:, 0] / sums_R2[:, 1]), ratio(numerator_N, denominator_N, transform))


def paired_difference(
    numerator_N: Floats, denominator_N: Floats, baseline_numerator_N: Floats, baseline_denominator_N: Floats,
    *, transform: Callable[[Floats], Floats] = same, seed: int = 0, resamples: int = RESAMPLES,
) -> tuple[float, Interval]:  # fmt: skip
    """Difference of two ratios over the same items, and its 95 % interval; both sides take the same draws.

    Item `i` is the same document or question on both sides, so what makes it hard for both cancels.
    """
    columns_N4 = np.stack([numerator_N, denominator_N, baseline_numerator_N, baseline_denominator_N], axis=1)
    sums_R4 = _resampled_sums(columns_N4, seed, resamples)
    difference_R = transform(sums_R4[:, 0] / sums_R4[:, 1]) - transform(sums_R4[:, 2] / sums_R4[:, 3])
    difference = ratio(numerator_N, denominator_N, transform) - ratio(baseline_numerator_N, baseline_denominator_N, transform)
    return difference, _percentiles(difference_R, difference)


def _resampled_sums(columns_NC: Floats, seed: int, resamples: int) -> Floats:
    """Column sums of `resamples` draws of N rows with replacement: [R, C]."""
    items = len(columns_NC)
    if items == 0:
        raise ValueError("no items to resample")
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_DRAWS // items)
    parts = []
    for start in range(0, resamples, chunk):
        draws_RN = generator.integers(0, items, size=(min(chunk, resamples - start), items))
        parts.append(np.stack([column_N[draws_RN].sum(axis=1) for column_N in columns_NC.T], axis=1))
    return np.concatenate(parts)


def _percentiles(values_R: Floats, estimate: float) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    # Sums in another order differ in the last digit: one item, or equal items, must not give an interval beside the estimate.
    return float(min(low, estimate)), float(max(high, estimate))

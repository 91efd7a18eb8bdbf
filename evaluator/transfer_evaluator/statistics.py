"""Intervals, tests and power from per-item scores: bootstrap over items or clusters of them, plain and paired.

Every score of the table is a ratio of two sums over items: nats over bytes for bits per byte, right answers over questions
for accuracy. So one estimator serves all: draw items with replacement, sum, divide (Efron and Tibshirani, An Introduction
to the Bootstrap, chapters 13 and 8.3 for pairs). Documents differ in length; a mean of per-document ratios would give a
title the weight of a chapter, the ratio of sums does not.

Items that share a passage or a subject are not independent, and drawing them one by one makes intervals too narrow. So whole
clusters are drawn (Davison and Hinkley, Bootstrap Methods and their Application, 3.8): their sums are the rows that are resampled.

A mean over languages is over strata: the languages are those that were asked for, and nothing is to be learned about others. So they are
fixed, and the items of each are drawn within it (the same book, 3.2). Each counts the same, whatever the number of its items.

Shapes: N items, K clusters, S strata, C columns, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 2000
LEVEL = 0.95
POWER = 0.8
LEAST_CLUSTERS = 20
"""With fewer clusters a percentile interval over them covers too seldom: 89 % at 10, 93 % at 20, by simulation."""
TEST_RESAMPLES = 9999
"""Random swaps of a test; with the observed one they make 10,000, so that the smallest p-value is 0.0001."""
EXACT_CLUSTERS = 12
"""Up to here a test goes through all 2^K swaps instead of drawing some."""
CHUNK_DRAWS = 4_000_000
"""Draws held in memory at once: 32 MB of indices."""


def same(value: Floats) -> Floats:
    """No transformation."""
    return value


def ratio(numerator_N: Floats, denominator_N: Floats, transform: Callable[[Floats], Floats] = same) -> float:
    """`transform` of the ratio of sums."""
    return float(transform(np.asarray(np.sum(numerator_N) / np.sum(denominator_N))))


def ratio_interval(
    numerator_N: Floats, denominator_N: Floats,
    *, transform: Callable[[Floats], Floats] = same, seed: int = 0, resamples: int = RESAMPLES, clusters: Sequence[Hashable] | None = None,
) -> Interval:  # fmt: skip
    """95 % percentile interval of a ratio of sums; items, or whole clusters of them, are resampled.

    Args:
        numerator_N: what is summed, such as nats of each document.
        denominator_N: what it is divided by, such as bytes of each document; positive. Ones for a mean.
        transform: applied to every resampled ratio, such as `numpy.exp`.
        seed: of the resampling.
        resamples: R.
        clusters: the cluster of each item, N of them; every item is one by itself where there are none.
    """
    sums_R2 = _resampled_sums(cluster_sums(np.stack([numerator_N, denominator_N], axis=1), clusters), seed, resamples)
    return _percentiles(transform(sums_R2[:, 0] / sums_R2[:, 1]), ratio(numerator_N, denominator_N, transform))


def paired_difference(
    numerator_N: Floats, denominator_N: Floats, baseline_numerator_N: Floats, baseline_denominator_N: Floats,
    *, transform: Callable[[Floats], Floats] = same, seed: int = 0, resamples: int = RESAMPLES, clusters: Sequence[Hashable] | None = None,
) -> tuple[float, Interval]:  # fmt: skip
    """Difference of two ratios over the same items, and its 95 % interval; both sides take the same draws.

    Item `i` is the same document or question on both sides, so what makes it hard for both cancels.
    """
    columns_N4 = np.stack([numerator_N, denominator_N, baseline_numerator_N, baseline_denominator_N], axis=1)
    sums_R4 = _resampled_sums(cluster_sums(columns_N4, clusters), seed, resamples)
    difference_R = _difference(sums_R4, transform)
    difference = ratio(numerator_N, denominator_N, transform) - ratio(baseline_numerator_N, baseline_denominator_N, transform)
    return difference, _percentiles(difference_R, difference)


def paired_standard_error(
    numerator_N: Floats, denominator_N: Floats, baseline_numerator_N: Floats, baseline_denominator_N: Floats,
    *, transform: Callable[[Floats], Floats] = same, clusters: Sequence[Hashable] | None = None,
) -> float | None:  # fmt: skip
    """Jackknife standard error of a paired difference, one cluster left out at a time; None for a single cluster.

    Efron and Tibshirani, chapter 11.
    """
    sums_K4 = cluster_sums(np.stack([numerator_N, denominator_N, baseline_numerator_N, baseline_denominator_N], axis=1), clusters)
    count = len(sums_K4)
    without_K4 = sums_K4.sum(axis=0) - sums_K4
    if count < 2 or (without_K4[:, [1, 3]] <= 0).any():
        return None
    difference_K = _difference(without_K4, transform)
    return float(np.sqrt((count - 1) / count * np.sum((difference_K - difference_K.mean()) ** 2)))


def mean_interval(
    strata_SK2: Sequence[Floats], *, transform: Callable[[Floats], Floats] = same, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, Interval]:
    """Mean of the ratios of the strata, and its 95 % interval; each stratum is what `cluster_sums` gives of its two columns."""
    sums_SR2 = [_resampled_sums(sums_K2, [seed, place], resamples) for place, sums_K2 in enumerate(strata_SK2)]
    mean = float(np.mean([ratio(sums_K2[:, 0], sums_K2[:, 1], transform) for sums_K2 in strata_SK2]))
    return mean, _percentiles(np.mean([transform(sums_R2[:, 0] / sums_R2[:, 1]) for sums_R2 in sums_SR2], axis=0), mean)


def mean_paired_difference(
    strata_SK4: Sequence[Floats], *, transform: Callable[[Floats], Floats] = same, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, Interval]:
    """Mean of the paired differences of the strata, and its 95 % interval."""
    sums_SR4 = [_resampled_sums(sums_K4, [seed, place], resamples) for place, sums_K4 in enumerate(strata_SK4)]
    mean = _mean_difference(strata_SK4, transform)
    return mean, _percentiles(np.mean([_difference(sums_R4, transform) for sums_R4 in sums_SR4], axis=0), mean)


def mean_randomization_test(
    strata_SK4: Sequence[Floats], *, transform: Callable[[Floats], Floats] = same, seed: int = 0, resamples: int = TEST_RESAMPLES
) -> float:
    """Two-sided p-value of a mean of paired differences: clusters swap sides within their stratum."""
    generators = [np.random.default_rng([seed, place]) for place in range(len(strata_SK4))]
    swapped_SR = [
        _random_swaps(sums_K4, resamples, generator, transform) for sums_K4, generator in zip(strata_SK4, generators, strict=True)
    ]
    mean_R: Floats = np.mean(swapped_SR, axis=0)
    return (_reached(mean_R, abs(_mean_difference(strata_SK4, transform))) + 1) / (resamples + 1)


def minimum_detectable(standard_error: float, *, power: float = POWER, level: float = LEVEL) -> float:
    """The true difference that a two-sided test at `1 - level` would find with probability `power`, by the normal approximation."""
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * standard_error


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided McNemar test: the p-value of `won` items right only now and `lost` items right only before.

    Where nothing changed, an item is as likely to be won as lost: the smaller count is binomial (McNemar 1947, exact form of Cochran 1950).
    Items must be independent of each other.
    """
    discordant = won + lost
    tail = ways = 1
    for count in range(min(won, lost)):  # each binomial coefficient from the one before: math.comb would begin anew, minutes for MMLU
        ways = ways * (discordant - count) // (count + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**discordant))


def randomization_test(
    numerator_N: Floats, denominator_N: Floats, baseline_numerator_N: Floats, baseline_denominator_N: Floats,
    *, transform: Callable[[Floats], Floats] = same, seed: int = 0, resamples: int = TEST_RESAMPLES,
    clusters: Sequence[Hashable] | None = None,
) -> float:  # fmt: skip
    """Two-sided p-value of a paired difference: how often one as large comes about when clusters swap sides at random.

    If the two sides do not differ, which of them gave which values of a cluster is arbitrary (Fisher's randomization test; Noreen,
    Computer-Intensive Methods for Testing Hypotheses, 1989). All swaps up to 12 clusters, beyond that `resamples` drawn ones.
    """
    sums_K4 = cluster_sums(np.stack([numerator_N, denominator_N, baseline_numerator_N, baseline_denominator_N], axis=1), clusters)
    count = len(sums_K4)
    observed = abs(float(_difference(sums_K4.sum(axis=0, keepdims=True), transform)[0]))
    if count <= EXACT_CLUSTERS:
        swaps_RK = np.arange(2**count)[:, None] >> np.arange(count) & 1  # all ways in which they can
        return _reached(_difference(_swapped_sums(sums_K4, swaps_RK.astype(np.float64)), transform), observed) / len(swaps_RK)
    generator = np.random.default_rng(seed)
    return (_reached(_random_swaps(sums_K4, resamples, generator, transform), observed) + 1) / (resamples + 1)


def _random_swaps(sums_K4: Floats, resamples: int, generator: np.random.Generator, transform: Callable[[Floats], Floats]) -> Floats:
    """Differences after clusters have swapped sides at random: [R]."""
    count = len(sums_K4)
    chunk = max(1, CHUNK_DRAWS // count)
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    drawn = (generator.integers(0, 2, size=(size, count), dtype=np.int8).astype(np.float64) for size in sizes)
    return np.concatenate([_difference(_swapped_sums(sums_K4, swap_RK), transform) for swap_RK in drawn])


def _reached(difference_R: Floats, observed: float) -> int:
    """How many are as large. Sums in another order differ in the last digits, and a tie counts."""
    return int(np.sum(np.abs(difference_R) >= observed * (1 - 1e-9) - 1e-15))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in their order: whoever calls those up to 0.05 real errs in 5 % of such families (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def cluster_sums(columns_NC: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """Sums of every column over each cluster, in order of first appearance: [K, C]; the columns themselves without clusters."""
    if clusters is None:
        return columns_NC
    places: dict[Hashable, int] = {}
    place_N = np.array([places.setdefault(cluster, len(places)) for cluster in clusters], dtype=np.intp)
    sums_KC = np.zeros((len(places), columns_NC.shape[1]))
    np.add.at(sums_KC, place_N, columns_NC)
    return sums_KC


def _difference(sums_R4: Floats, transform: Callable[[Floats], Floats]) -> Floats:
    """Ours less the baseline's, of rows of four sums."""
    return transform(sums_R4[:, 0] / sums_R4[:, 1]) - transform(sums_R4[:, 2] / sums_R4[:, 3])


def _mean_difference(strata_SK4: Sequence[Floats], transform: Callable[[Floats], Floats]) -> float:
    return float(np.mean([_difference(sums_K4.sum(axis=0, keepdims=True), transform)[0] for sums_K4 in strata_SK4]))


def _swapped_sums(sums_K4: Floats, swap_RK: Floats) -> Floats:
    """Totals after the clusters marked with 1 have changed sides: [R, 4]."""
    moved_R2 = swap_RK @ (sums_K4[:, 2:] - sums_K4[:, :2])
    sums_R4: Floats = sums_K4.sum(axis=0) + np.concatenate([moved_R2, -moved_R2], axis=1)
    return sums_R4


def _resampled_sums(columns_KC: Floats, seed: int | Sequence[int], resamples: int) -> Floats:
    """Column sums of `resamples` draws of K rows with replacement: [R, C]."""
    rows = len(columns_KC)
    if rows == 0:
        raise ValueError("no items to resample")
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_DRAWS // rows)
    parts = []
    for start in range(0, resamples, chunk):
        draws_RK = generator.integers(0, rows, size=(min(chunk, resamples - start), rows))
        parts.append(np.stack([column_K[draws_RK].sum(axis=1) for column_K in columns_KC.T], axis=1))
    return np.concatenate(parts)


def _percentiles(values_R: Floats, estimate: float) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    # Sums in another order differ in the last digit: one item, or equal items, must not give an interval beside the estimate.
    return float(min(low, estimate)), float(max(high, estimate))

"""How far judges agree on the same answers.

Krippendorff's alpha: 1 - observed / expected disagreement, 1 for perfect agreement, 0 for that of chance. It takes any number of raters and
missing values (Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011). Scores from 0 to 3 are ordinal; the interval form weighs
by distance instead of by rank. Beside it stand the plain shares of equal scores and of scores at most one apart, because alpha is low where
nearly all scores are the same, however well the judges agree.

Shapes: R raters, U units (answers), V distinct values.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfer_evaluator.statistics import Floats


class Level(enum.Enum):
    """What differences between values mean."""

    NOMINAL = "nominal"
    ORDINAL = "ordinal"
    INTERVAL = "interval"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of two or more raters on one score."""

    units: int
    """Answers with at least two scores."""
    ordinal_alpha: float | None
    """None where all scores are the same, or there are none: alpha is not defined then."""
    interval_alpha: float | None
    exact: float | None
    """Share of pairs of scores of one answer that are equal."""
    within_one: float | None
    """Share of them that differ by at most 1."""


def agreement(ratings: Sequence[Sequence[float | None]]) -> Agreement:
    """Of raters (first index) on answers (second index); None for no score."""
    values_RU = np.array([[np.nan if value is None else value for value in rater] for rater in ratings], dtype=np.float64)
    differences = _pairwise_differences(values_RU)
    return Agreement(
        units=int(np.sum(np.sum(~np.isnan(values_RU), axis=0) >= 2)) if values_RU.size else 0,
        ordinal_alpha=krippendorff_alpha(values_RU, Level.ORDINAL),
        interval_alpha=krippendorff_alpha(values_RU, Level.INTERVAL),
        exact=float(np.mean(differences == 0)) if differences.size else None,
        within_one=float(np.mean(differences <= 1)) if differences.size else None,
    )


def _pairwise_differences(values_RU: Floats) -> Floats:
    pairs = [np.abs(values_RU[i] - values_RU[j]) for i, j in itertools.combinations(range(len(values_RU)), 2)]
    found: Floats = np.concatenate(pairs) if pairs else np.empty(0)
    return found[~np.isnan(found)]


def krippendorff_alpha(values_RU: Floats, level: Level) -> float | None:
    """Alpha of ratings with NaN for missing ones; None where no two ratings of one unit, or no two different values, are there."""
    if values_RU.ndim != 2 or not values_RU.size:
        return None
    pairable_RU = values_RU[:, np.sum(~np.isnan(values_RU), axis=0) >= 2]
    levels_V = np.unique(pairable_RU[~np.isnan(pairable_RU)])
    if len(levels_V) < 2:
        return None
    counts_UV = np.stack([np.sum(pairable_RU == value, axis=0) for value in levels_V], axis=1).astype(np.float64)
    coincidences_VV = _coincidences(counts_UV)
    totals_V = coincidences_VV.sum(axis=1)
    distance_VV = _distances(levels_V, totals_V, level)
    observed = float(np.sum(coincidences_VV * distance_VV))
    expected = float(np.sum(np.outer(totals_V, totals_V) * distance_VV)) / (float(totals_V.sum()) - 1)
    return 1 - observed / expected


def _coincidences(counts_UV: Floats) -> Floats:
    """Pairs of values within units, each unit's pairs weighted by 1 / (its number of values - 1)."""
    weights_U = 1 / (counts_UV.sum(axis=1) - 1)
    pairs_VV: Floats = np.einsum("uv,uw,u->vw", counts_UV, counts_UV, weights_U)
    pairs_VV -= np.diag(counts_UV.T @ weights_U)  # no value is paired with itself
    return pairs_VV


def _distances(levels_V: Floats, totals_V: Floats, level: Level) -> Floats:
    """Squared differences of values, as the level of measurement has them."""
    match level:
        case Level.NOMINAL:
            return 1.0 - np.eye(len(levels_V))
        case Level.ORDINAL:
            ranks_V = np.cumsum(totals_V) - totals_V / 2  # middle rank of each value
            return np.subtract.outer(ranks_V, ranks_V) ** 2
        case Level.INTERVAL:
            return np.subtract.outer(levels_V, levels_V) ** 2

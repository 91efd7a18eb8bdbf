"""Several runs that differ in their seed alone: what they come to together, and how much of the doubt is the seed's.

An interval of one run tells what other items would have done to its score; it knows nothing of another order of rows or another start
of new weights. For K runs with scores x_1 … x_K over the same items, each with the standard error e_k of its items:

    mean         x̄ = Σ x_k / K
    seed         s² = Σ (x_k - x̄)² / (K - 1)
    error of x̄   sqrt(e² + s² / K), e² = Σ e_k² / K

The items are the same in every run, so their part does not shrink with K. e² and s² both hold what item and seed do together, so the
error is rather too large than too small. The interval is Student's with the degrees of freedom of Welch and Satterthwaite (1946): with two
or three runs s is hardly known, and 1.96 errors would cover far too seldom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

from transfer_api.errors import SpecError
from transfer_api.progress import Score
from transfer_api.results import Results
from transfer_evaluator.statistics import LEVEL, Interval
from transfer_evaluator.table import score_line


@dataclass(frozen=True, kw_only=True)
class Combined:
    """A value over K runs."""

    mean: float
    seed_deviation: float
    """Standard deviation between the runs."""
    item_error: float
    """Standard error of one run's items; 0 where its interval is not known."""
    error: float
    """Standard error of the mean."""
    interval: Interval
    """95 %, over seeds and items."""

    @property
    def seed_share(self) -> float:
        """Share of the mean's variance that is the seed's, from 0 to 1."""
        return 1 - (self.item_error / self.error) ** 2 if self.error else 0.0


@dataclass(frozen=True, kw_only=True)
class CombinedScore:
    """A line of the table over all runs."""

    suite: str
    task: str
    language: str
    metric: str
    value: float
    """Mean over the runs."""
    lowest: float
    highest: float
    baseline: float | None
    """Mean too: where examples stand before questions, the seed chooses them."""
    compared: bool
    """Whether `combined` is of the difference to the baseline, or of the value."""
    items_counted: bool
    """Whether the doubt of the items is in the interval; figures that are no mean of items have none."""
    combined: Combined
    higher_is_better: bool

    @property
    def effect(self) -> str:
        """better, worse, equal (no difference shown) or alone (no baseline)."""
        low, high = self.combined.interval
        if not self.compared:
            return "alone"
        if low <= 0 <= high:
            return "equal"
        return "better" if (low > 0) is self.higher_is_better else "worse"


def combine(values: Sequence[float], errors: Sequence[float]) -> Combined:
    """Mean, errors and interval of K runs.

    Args:
        values: of each run.
        errors: standard error of each run over its items.

    Raises:
        ValueError: fewer than two runs.
    """
    count = len(values)
    if count < 2:
        raise ValueError("one run says nothing of its seed")
    between, items = variance(values), fmean(error**2 for error in errors)
    squared = items + between / count
    error = math.sqrt(squared)
    # Items are many; of the two parts only that of the seeds has few degrees of freedom.
    freedom = squared**2 * (count - 1) / (between / count) ** 2 if between else math.inf
    reach = _student(freedom) * error
    mean = fmean(values)
    return Combined(
        mean=mean, seed_deviation=math.sqrt(between), item_error=math.sqrt(items), error=error, interval=(mean - reach, mean + reach)
    )


def combine_runs(runs: Sequence[Results]) -> list[CombinedScore]:
    """The lines that all runs have, in the order of the first.

    Raises:
        SpecError: fewer than two runs, or runs that do not differ in their seed alone.
    """
    _check(runs)
    tables = [{score_line(score): score for score in run.scores} for run in runs]
    return [_line([table[line] for table in tables]) for line in tables[0] if all(line in table for table in tables)]


def _line(scores: Sequence[Score]) -> CombinedScore:
    first = scores[0]
    compared = all(score.difference is not None for score in scores)
    values = [score.difference if compared and score.difference is not None else score.value for score in scores]
    return CombinedScore(
        suite=first.suite, task=first.task, language=first.language, metric=first.metric, value=fmean(score.value for score in scores),
        lowest=min(score.value for score in scores), highest=max(score.value for score in scores),
        baseline=fmean(score.baseline or 0.0 for score in scores) if compared else None, compared=compared,
        higher_is_better=first.higher_is_better,
        items_counted=all(score.interval is not None for score in scores),
        combined=combine(values, [_item_error(score) for score in scores]),
    )  # fmt: skip


def _item_error(score: Score) -> float:
    """Standard error from the width of the bootstrap's interval."""
    if score.interval is None:
        return 0.0
    low, high = score.interval
    return (high - low) / (2 * NormalDist().inv_cdf((1 + LEVEL) / 2))


def _student(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2)) if math.isfinite(freedom) else NormalDist().inv_cdf((1 + LEVEL) / 2)


def _check(runs: Sequence[Results]) -> None:
    if len(runs) < 2:
        raise SpecError("is one run, which says nothing of its seed", field="RUN", next_step="Name two or more, of the same file")
    seeds = [_seed(run) for run in runs]
    if len(set(seeds)) < len(seeds):
        raise SpecError(
            "are runs of the same seed, which say nothing of it", field="RUN", value=", ".join(map(str, seeds)),
            next_step="Give each run a seed of its own (spec.seed)",
        )  # fmt: skip
    for run in runs[1:]:
        if not run.recipe or run.recipe != runs[0].recipe:
            raise SpecError(
                "differ in more than their seed", field="RUN", value=f"{runs[0].experiment} and {run.experiment}",
                allowed="runs of the same file with other seeds",
                next_step="Run the same file with another seed and name; `transfer report FILE` renews a report of an older version",
            )  # fmt: skip


def _seed(run: Results) -> int | None:
    return next((stage.seed for stage in run.stages if stage.seed is not None), None)

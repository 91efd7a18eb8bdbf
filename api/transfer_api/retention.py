"""The retention gate: whether English was kept, within a margin and with confidence.

A gate on the difference alone passes whatever is measured badly enough. So a line is kept where the whole 95 % interval of its loss
lies within the margin (a test of non-inferiority), lost where the whole interval lies beyond it, and undecided between: more items
are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transfer_api.progress import Score, judged_as_english
from transfer_api.spec import Retention
from transfer_api.status import Reason


@dataclass(frozen=True)
class Judgement:
    """What became of English."""

    kept: bool | None
    """None: not measured, or the intervals are too wide to say."""
    reason: Reason
    message: str


def judge_retention(retention: Retention, scores: Sequence[Score]) -> Judgement:
    """Judges every English score that has a baseline, or those of the named tasks; the worst decides.

    Tasks of a group count by the group's mean, and a score without an interval of its difference by none.
    """
    measured = [(score, *loss) for score in scores if _counts(score, retention) and (loss := loss_interval(score)) is not None]
    if not measured:
        wanted = ", ".join(retention.tasks) or "a text or task in English"
        return Judgement(None, Reason.RETENTION_NOT_MEASURED, f"No score of {wanted} has a baseline and an interval beside it.")
    margin = float(retention.max_loss)
    lost = [line for line in measured if line[1] > margin]
    undecided = [line for line in measured if line[1] <= margin < line[2]]
    told = f"at most {margin:.1%} of the baseline may be lost"
    if lost:
        return Judgement(False, Reason.BEYOND_MARGIN, f"{told}: {_lines(lost)}.")
    if undecided:
        return Judgement(None, Reason.INTERVAL_TOO_WIDE, f"{told}: {_lines(undecided)}; more items would tell.")
    return Judgement(True, Reason.WITHIN_MARGIN, f"{told}: {_lines(measured)}.")


def loss_interval(score: Score) -> tuple[float, float] | None:
    """Ends of the 95 % interval of what was lost, as a share of the baseline; negative where it was gained. None without a comparison."""
    if not score.baseline or score.difference is None or score.interval is None:
        return None
    sign = -1 if score.higher_is_better else 1
    low, high = sorted(sign * end / abs(score.baseline) + 0.0 for end in score.interval)  # no negative zero
    return low, high


def _counts(score: Score, retention: Retention) -> bool:
    return score.task in retention.tasks and score.metric != "perplexity" if retention.tasks else judged_as_english(score)


def _lines(lines: Sequence[tuple[Score, float, float]]) -> str:
    return "; ".join(f"{score.task} {score.metric} {_told(low, high)}" for score, low, high in lines)


def _told(low: float, high: float) -> str:
    if high < 0:
        return f"gained {-high:.1%} to {-low:.1%}"
    return f"lost {low:+.1%} to {high:+.1%}"

"""The table of scores and the one-line verdict, as plain text: the same figures on the screen, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transfer_api.progress import Score

ENGLISH = "en"
COLUMNS = ("suite", "task", "language", "metric", "baseline", "result", "difference", "95 % interval", "items")
ALONE = tuple(column for column in COLUMNS if column not in ("baseline", "difference"))
"""Columns where nothing has a baseline: the base model itself was scored, or `baseline: false` was asked for."""
NOTE = (
    "Difference = result - baseline over the items that both have; the interval is a 95 % bootstrap over these items "
    "(2,000 resamples, paired). Better and worse mark where it excludes 0; without a baseline it is the interval of the result. "
    "It covers the choice of items, not of the training seed."
)
ALONE_NOTE = "The interval is a 95 % bootstrap over the items (2,000 resamples). Nothing was scored beside it to compare with."
PERPLEXITY_NOTE = (
    "Perplexity is per token: after a change of vocabulary it may not be compared, since longer tokens alone raise it; no baseline stands "
    "beside it then. Bits per byte and per character may: they count the same bytes and characters whatever the tokens are."
)


@dataclass(frozen=True)
class Row:
    """A line of the table, ready to print."""

    cells: tuple[str, ...]
    """In the order of `columns`."""
    effect: str
    """better, worse, equal (interval contains 0) or alone (no baseline)."""


def compared(scores: Sequence[Score]) -> bool:
    """Whether any score stands beside that of the base model."""
    return any(score.baseline is not None for score in scores)


def title(scores: Sequence[Score]) -> str:
    """Heading of the table."""
    return "Scores beside the base model" if compared(scores) else "Scores"


def columns(scores: Sequence[Score]) -> tuple[str, ...]:
    """Headings of the columns that say something of these scores; the first four are names."""
    return COLUMNS if compared(scores) else ALONE


def note(scores: Sequence[Score]) -> str:
    """What the figures mean, for below the table."""
    return NOTE if compared(scores) else ALONE_NOTE


def render_table(scores: Sequence[Score]) -> list[Row]:
    """The rows in the order of the scores."""
    return [_row(score, columns(scores)) for score in scores]


def _row(score: Score, shown: Sequence[str]) -> Row:
    effect = effect_of(score)
    mark = f" {effect}" if effect in ("better", "worse") else ""
    cells = (
        score.suite, score.task, score.language, score.metric,
        number(score.baseline), number(score.value), number(score.difference, sign=True) + mark,
        interval(score), f"{score.items:,}",
    )  # fmt: skip
    return Row(tuple(cell for heading, cell in zip(COLUMNS, cells, strict=True) if heading in shown), effect)


def effect_of(score: Score) -> str:
    """Whether the difference is one that its interval vouches for, and in which direction."""
    if score.difference is None or score.interval is None:
        return "alone"
    low, high = score.interval
    if low <= 0 <= high:
        return "equal"
    return "better" if (score.difference > 0) == score.higher_is_better else "worse"


def number(value: float | None, *, sign: bool = False) -> str:
    """Four significant digits up to a thousand, none after the point beyond; a dash for nothing."""
    if value is None:
        return "–"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(f"{value:.{digits}f}") else text.replace("-", "").replace("+", "")


def interval(score: Score) -> str:
    """`low … high`; with signs where it is that of a difference."""
    if score.interval is None:
        return "–"
    signed = score.difference is not None
    return " … ".join(number(end, sign=signed) for end in score.interval)


def verdict(scores: Sequence[Score], language: str) -> str:
    """What became of the target language and of English, in one sentence made of scores only."""
    bits = [score for score in scores if score.metric == "bits_per_byte"]
    target = [_clause(score) for score in bits if _same_language(score.language, language)]
    english = [_clause(score) for score in bits if _same_language(score.language, ENGLISH)] if language != ENGLISH else []
    if not target and not english:
        return "No bits per byte were measured; see the table."
    parts = [
        f"{name}: {'; '.join(clauses)}" for name, clauses in ((f"Target language ({language})", target), ("English", english)) if clauses
    ]
    return ". ".join(parts) + "."


def _same_language(left: str, right: str) -> bool:
    return left.split("-")[0].lower() == right.split("-")[0].lower()


def _clause(score: Score) -> str:
    if score.baseline is None or score.difference is None or score.interval is None or not score.baseline:
        return f"{number(score.value)} bits per byte on {score.task}"
    low, high = (_percent(end / score.baseline) for end in score.interval)
    change = _percent(score.difference / score.baseline)
    words = {"better": "better", "worse": "worse", "equal": "no difference shown"}[effect_of(score)]
    values = f"{number(score.baseline)} → {number(score.value)}"
    return f"{values} bits per byte on {score.task}, {change} % (95 % interval {low} to {high} %), {words}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")

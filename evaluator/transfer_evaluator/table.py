"""The table of scores and the one-line verdict, as plain text: the same figures on the screen, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transfer_api.language import ENGLISH, primary
from transfer_api.progress import Score

NAMES = ("suite", "task", "language", "metric")
COLUMNS = (*NAMES, "baseline", "result", "difference", "95 % interval", "items")
"""What a screen has room for."""
FULL_COLUMNS = (*COLUMNS[:-1], "p", "p (Holm)", "detectable", "items", "resampled")
OF_DIFFERENCES = ("baseline", "difference", "p", "p (Holm)", "detectable")
"""Left out where nothing has a baseline: the base model itself was scored, or `baseline: false` was asked for."""
SIGNIFICANT = 0.05
NOTE = (
    "Difference = result - baseline over the items that both have; the interval is a 95 % percentile bootstrap (2,000 resamples, paired) "
    "over what is named under resampled: items, or whole documents or subjects of them. "
    "p: exact McNemar for right and wrong answers to independent items, else a paired randomization test (10,000 swaps); p (Holm) is "
    "adjusted over the lines of the suite with the same metric, a group's mean apart from its tasks. "
    "Better and worse mark where the interval excludes 0 and p (Holm) is at most 0.05; without a baseline the interval is that of the "
    "result. "
    "Detectable: the smallest true difference that would be found with a power of 80 %. "
    "All of it covers the choice of items, not of the training seed."
)
ALONE_NOTE = (
    "The interval is a 95 % percentile bootstrap (2,000 resamples) over what is named under resampled. "
    "Nothing was scored beside it to compare with."
)
PERPLEXITY_NOTE = (
    "Perplexity is per token: after a change of vocabulary it may not be compared, since longer tokens alone raise it; no baseline stands "
    "beside it then. Bits per byte and per character may: they count the same bytes and characters whatever the tokens are."
)


@dataclass(frozen=True)
class Row:
    """A line of the table, ready to print."""

    cells: tuple[str, ...]
    """In the order of `columns`."""
    values: tuple[str | float, ...]
    """What the cells are sorted by."""
    effect: str
    """better, worse, equal (no difference shown) or alone (no baseline)."""
    part: bool = False
    """Of a mean in a row above."""


def compared(scores: Sequence[Score]) -> bool:
    """Whether any score stands beside that of the base model."""
    return any(score.baseline is not None for score in scores)


def title(scores: Sequence[Score]) -> str:
    """Heading of the table."""
    return "Scores beside the base model" if compared(scores) else "Scores"


def columns(scores: Sequence[Score], *, full: bool = False) -> tuple[str, ...]:
    """Headings of the columns that say something of these scores; the first four are names."""
    wanted = FULL_COLUMNS if full else COLUMNS
    return wanted if compared(scores) else tuple(column for column in wanted if column not in OF_DIFFERENCES)


def score_line(score: Score) -> tuple[str, str, str, str]:
    """What a line of the table is of: suite, task, language and metric."""
    return score.suite, score.task, score.language, score.metric


def with_parts(scores: Sequence[Score]) -> list[Score]:
    """The scores with the tasks of a mean right after it, all else in its order."""
    parts: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        if score.part_of:
            parts.setdefault((score.suite, score.part_of, score.metric), []).append(score)
    arranged: list[Score] = []
    for score in scores:
        if not score.part_of:
            arranged.append(score)
            for group in (score.task, score.suite) if score.parts else ():
                arranged += parts.pop((score.suite, group, score.metric), [])
    return arranged + [score for orphans in parts.values() for score in orphans]


def remarks(scores: Sequence[Score]) -> list[str]:
    """What is unusual about the items of each task or text, once; those of a group stand with the group."""
    return list(dict.fromkeys(f"{score.task}: {note}" for score in scores if not score.part_of for note in score.notes))


def note(scores: Sequence[Score]) -> str:
    """What the figures mean, for below the table."""
    return NOTE if compared(scores) else ALONE_NOTE


def render_table(scores: Sequence[Score], *, full: bool = False) -> list[Row]:
    """The rows in the order of the scores."""
    return [_row(score, columns(scores, full=full)) for score in scores]


def _row(score: Score, shown: Sequence[str]) -> Row:
    effect = effect_of(score)
    mark = f" {effect}" if effect in ("better", "worse") else ""
    low = score.interval[0] if score.interval else None
    content: dict[str, tuple[str, str | float | None]] = {
        "suite": (score.suite, score.suite),
        "task": (f"{score.task} (mean of {score.parts})" if score.parts else score.task, score.task),
        "language": (f"mean of {len(score.languages)}" if score.languages else score.language, score.language),
        "metric": (score.metric, score.metric),
        "baseline": (number(score.baseline), score.baseline),
        "result": (number(score.value), score.value),
        "difference": (number(score.difference, sign=True) + mark, score.difference),
        "95 % interval": (interval(score), low),
        "p": (probability(score.p_value), score.p_value),
        "p (Holm)": (probability(score.adjusted_p_value), score.adjusted_p_value),
        "detectable": (number(score.minimum_detectable), score.minimum_detectable),
        "items": (f"{score.items:,}", float(score.items)),
        "resampled": (_resampled(score), _resampled(score)),
    }
    chosen = [content[heading] for heading in shown]
    values = tuple("" if value is None else value for _, value in chosen)
    return Row(tuple(text for text, _ in chosen), values, effect, bool(score.part_of))


def _resampled(score: Score) -> str:
    words = f"{score.clusters:,} {score.resampled}s" if score.clusters else f"{score.resampled}s" if score.resampled else "–"
    return f"{words}, each in its language" if score.languages else words


def probability(value: float | None) -> str:
    """A p-value with three digits after the point; a dash for none."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def effect_of(score: Score) -> Literal["better", "worse", "equal", "alone"]:
    """Whether the difference is one that its interval and its test vouch for, and in which direction."""
    if score.difference is None or score.interval is None:
        return "alone"
    low, high = score.interval
    if low <= 0 <= high or (score.adjusted_p_value is not None and score.adjusted_p_value > SIGNIFICANT):
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
    beside = primary(language) != ENGLISH
    target = [_clause(score) for score in bits if primary(score.language) == primary(language)]
    english = [_clause(score) for score in bits if beside and primary(score.language) == ENGLISH]
    if not target and not english:
        where = f" in {language}{' or English' if beside else ''}" if bits else ""
        return f"No bits per byte were measured{where}; see the table."
    parts = [
        f"{name}: {'; '.join(clauses)}" for name, clauses in ((f"Target language ({language})", target), ("English", english)) if clauses
    ]
    return ". ".join(parts) + "."


def _clause(score: Score) -> str:
    if score.baseline is None or score.difference is None or score.interval is None or not score.baseline:
        return f"{number(score.value)} bits per byte on {score.task}"
    low, high = (_percent(end / score.baseline) for end in score.interval)
    change = _percent(score.difference / score.baseline)
    words = {"better": "better", "worse": "worse", "equal": _undecided(score)}[effect_of(score)]
    values = f"{number(score.baseline)} → {number(score.value)}"
    return f"{values} bits per byte on {score.task}, {change} % (95 % interval {low} to {high} %), {words}"


def _undecided(score: Score) -> str:
    """Why nothing is said of a difference: its interval holds 0, or the test, which few items cannot pass, does not exclude chance."""
    assert score.interval is not None
    low, high = score.interval
    if low <= 0 <= high:
        return "no difference shown"
    return f"which may be chance (p = {probability(score.adjusted_p_value)}, {score.items} items)"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")

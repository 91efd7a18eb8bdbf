"""From per-item values to lines of the table, with the baseline beside each.

A metric says which two item values it divides; everything else (value, interval, difference) follows from the items. A
figure of the harness that is not such a ratio is passed on without an interval rather than with an invented one.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transfer_api.errors import ArtifactError
from transfer_api.progress import Score
from transfer_evaluator.statistics import Floats, paired_difference, ratio, ratio_interval, same

Item = dict[str, Any]
"""One document or question: `id` and its values by name."""


class Transform(enum.Enum):
    """What is done to a ratio of sums."""

    NONE = "none"
    BITS = "bits"
    EXP = "exp"

    @property
    def function(self) -> Callable[[Floats], Floats]:
        """As a function of arrays."""
        match self:
            case Transform.NONE:
                return same
            case Transform.BITS:
                return _to_bits
            case Transform.EXP:
                return _exp


def _to_bits(nats: Floats) -> Floats:
    bits: Floats = nats / np.log(2.0)
    return bits


def _exp(nats: Floats) -> Floats:
    result: Floats = np.exp(nats)
    return result


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Sum of one item value over the sum of another (or over the number of items)."""

    name: str
    numerator: str
    denominator: str | None = None
    transform: Transform = Transform.NONE
    higher_is_better: bool = True
    main: bool = True
    """Stands in the first part of the table; others follow after all main ones."""
    must_agree: str | None = None
    """Item value that must be the same on both sides, or a comparison would mean nothing."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What a suite measured on one text or task."""

    suite: str
    task: str
    language: str
    harness: str
    metrics: Sequence[Metric]
    items: Sequence[Item]
    aggregates: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    """Figures that are no ratio of item values: name to value and whether higher is better."""
    detail: bool = False
    """Part of a group whose own line stands earlier."""

    @property
    def file(self) -> str:
        """Path of the items inside the artifact."""
        return f"items/{_file_name(self.suite)}.{_file_name(self.task)}.jsonl"


def _file_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    # Categories are named in many scripts, all of which become the same few dashes.
    return plain if name.isascii() and "/" not in name else f"{plain}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_items(folder: Path, result: TaskResult) -> None:
    """One JSON object a line."""
    path = folder / result.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in result.items), encoding="utf-8")


def read_items(folder: Path, result: TaskResult) -> list[Item] | None:
    """The items of another evaluation's same task; None where it did not have that task.

    Raises:
        ArtifactError: the file is not what `write_items` wrote.
    """
    path = folder / result.file
    if not path.is_file():
        return None
    try:
        items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(item, dict) and isinstance(item.get("id"), str) for item in items):
            raise ValueError("a line without id")
    except ValueError as error:
        raise ArtifactError(f"{path} cannot be read: {error}", next_step=f"Remove {folder} to have it made again") from error
    return items


def score_tasks(results: Sequence[TaskResult], baseline: Callable[[TaskResult], list[Item] | None], seed: int) -> list[Score]:
    """Lines of the table: main metrics of whole tasks, then of parts of groups, then the other metrics."""
    lines: list[tuple[tuple[bool, bool], Score]] = []
    for result in results:
        reference = baseline(result)
        lines += [((not metric.main, result.detail), score_metric(result, metric, reference, seed)) for metric in result.metrics]
        for name, (value, higher) in result.aggregates.items():
            score = Score(
                suite=result.suite, task=result.task, language=result.language, metric=name, value=value,
                items=len(result.items), higher_is_better=higher, harness=result.harness,
            )  # fmt: skip
            lines.append(((True, result.detail), score))
    return [score for _, score in sorted(lines, key=lambda line: line[0])]


def score_metric(result: TaskResult, metric: Metric, reference: Sequence[Item] | None, seed: int) -> Score:
    """Value with interval, or with baseline, paired difference and its interval over the items both have."""
    transform = metric.transform.function
    items = [item for item in result.items if metric.numerator in item]
    numerator_N, denominator_N = _columns(items, metric)
    score = Score(
        suite=result.suite, task=result.task, language=result.language, metric=metric.name,
        value=ratio(numerator_N, denominator_N, transform), items=len(items),
        higher_is_better=metric.higher_is_better, harness=result.harness,
    )  # fmt: skip
    pairs = _pairs(items, reference or [], metric)
    if not pairs:
        interval = ratio_interval(numerator_N, denominator_N, transform=transform, seed=seed)
        return score.model_copy(update={"interval": interval})
    ours = _columns([own for own, _ in pairs], metric)
    theirs = _columns([other for _, other in pairs], metric)
    difference, interval = paired_difference(*ours, *theirs, transform=transform, seed=seed)
    return score.model_copy(update={"baseline": ratio(*theirs, transform), "difference": difference, "interval": interval})


def _columns(items: Sequence[Item], metric: Metric) -> tuple[Floats, Floats]:
    numerator_N = np.array([item[metric.numerator] for item in items], dtype=np.float64)
    if metric.denominator is None:
        return numerator_N, np.ones(len(items))
    return numerator_N, np.array([item[metric.denominator] for item in items], dtype=np.float64)


def _pairs(items: Sequence[Item], reference: Sequence[Item], metric: Metric) -> list[tuple[Item, Item]]:
    others = {item["id"]: item for item in reference if metric.numerator in item}
    pairs = [(item, others[item["id"]]) for item in items if item["id"] in others]
    key = metric.must_agree
    if key is not None and any(own.get(key) != other.get(key) for own, other in pairs):
        return []
    return pairs

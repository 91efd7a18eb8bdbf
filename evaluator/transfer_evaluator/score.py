"""From per-item values to lines of the table, with the baseline beside each.

A metric says which two item values it divides; everything else (value, interval, difference) follows from the items. A
figure of the harness that is not such a ratio is passed on without an interval rather than with an invented one.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transfer_api.errors import ArtifactError
from transfer_api.language import ENGLISH, primary
from transfer_api.progress import Score
from transfer_evaluator.statistics import (
    LEAST_CLUSTERS,
    Floats,
    cluster_sums,
    holm,
    mcnemar,
    mean_interval,
    mean_paired_difference,
    mean_randomization_test,
    minimum_detectable,
    paired_difference,
    paired_standard_error,
    randomization_test,
    ratio,
    ratio_interval,
    same,
)

Item = dict[str, Any]
"""One document or question: `id` and its values by name."""
ITEM = "item"
RESULTS = "results.json"
"""File of an evaluation's artifact that holds its scores."""
DOCUMENT = "document"
"""The passage that questions are about."""
SUBJECT = "subject"
"""The task or field that a question belongs to. Few subjects are a fixed choice, of which nothing is to be learned about others."""
SEVERAL = "mul"
UNKNOWN = "und"
"""As languages: both are of ISO 639-2."""
MCNEMAR = "exact McNemar"
RANDOMIZATION = "paired randomization"


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
    """What measured it, and how."""
    metrics: Sequence[Metric]
    items: Sequence[Item]
    aggregates: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    """Figures that are no ratio of item values: name to value and whether higher is better."""
    detail: bool = False
    """Part of a group whose own line stands earlier."""
    group: str = ""
    """Of this line or of the one that it is a part of, where a suite has several: the task of the group's line."""
    unit: str = ITEM
    """What an item is: `item` or `document`."""
    cluster: str = ""
    """The item value that is the same for items that hang together, such as `document`, which are then resampled together."""
    notes: Sequence[str] = ()
    """What somebody who reads the score should know of the items behind it."""
    texts: Sequence[str] = ()
    """Text of each item, as far as the overlap with training texts needs it; never written."""

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


def json_lines(path: Path) -> Iterator[Any]:
    """What `write_items` wrote. Texts hold U+2028 and other ends of lines that are none here, at which `splitlines` would cut."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_items(folder: Path, result: TaskResult) -> list[Item] | None:
    """The items of another evaluation's same task; None where it did not have that task.

    Raises:
        ArtifactError: the file is not what `write_items` wrote.
    """
    path = folder / result.file
    if not path.is_file():
        return None
    try:
        items = list(json_lines(path))
        if not all(isinstance(item, dict) and isinstance(item.get("id"), str) for item in items):
            raise ValueError("a line without id")
    except ValueError as error:
        raise ArtifactError(f"{path} cannot be read: {error}", next_step=f"Remove {folder} to have it made again") from error
    return items


def score_tasks(results: Sequence[TaskResult], baseline: Callable[[TaskResult], list[Item] | None], seed: int) -> list[Score]:
    """Lines of the table: main metrics of whole tasks, then of parts of groups, then the other metrics; means before their parts."""
    wholes = {_group(result) for result in results if not result.detail}
    parts = Counter(_group(result) for result in results if result.detail and _group(result) in wholes)
    lines: list[tuple[tuple[bool, bool], Score]] = []
    references = [baseline(result) for result in results]
    families = _families(results)
    for place_of, (result, reference) in enumerate(zip(results, references, strict=True)):
        if (family := families.get(place_of)) is not None:
            members = [(results[member], references[member] or []) for member in family]
            # Not what needs equal items on both sides: tokens of one language are no measure for those of another.
            shared = [
                metric for metric in result.metrics if not metric.must_agree and all(metric in member.metrics for member, _ in members)
            ]
            lines += [((not metric.main, False), score_mean(members, metric, seed)) for metric in shared]
        group = _group(result)
        place: dict[str, Any] = {"part_of": group[1]} if result.detail and group in wholes else {"parts": parts[group]}
        place["notes"] = list(result.notes)
        for metric in result.metrics:
            score = score_metric(result, metric, reference, seed).model_copy(update=place)
            lines.append(((not metric.main, result.detail), score))
        for name, (value, higher) in result.aggregates.items():
            score = Score(
                suite=result.suite, task=result.task, language=result.language, metric=name, value=value,
                items=len(result.items), higher_is_better=higher, harness=result.harness,
            )  # fmt: skip
            lines.append(((True, result.detail), score.model_copy(update=place)))
    return adjust([score for _, score in sorted(lines, key=lambda line: line[0])])


def _group(result: TaskResult) -> tuple[str, str]:
    return result.suite, result.group or result.suite


def adjust(scores: Sequence[Score]) -> list[Score]:
    """Adds Holm's p-values. A family is what one question is asked of side by side: a metric on the texts or tasks of a suite.

    A mean, of a group or over languages, is asked of once, and is no family with its parts.
    """
    families: dict[tuple[str, str, str, bool], list[int]] = {}
    for place, score in enumerate(scores):
        if score.p_value is not None:
            families.setdefault((score.suite, score.metric, score.part_of, bool(score.languages)), []).append(place)
    adjusted = list(scores)
    for places in families.values():
        values = holm([scores[place].p_value or 0.0 for place in places])
        for place, value in zip(places, values, strict=True):
            adjusted[place] = scores[place].model_copy(update={"adjusted_p_value": value})
    return adjusted


def score_metric(result: TaskResult, metric: Metric, reference: Sequence[Item] | None, seed: int) -> Score:
    """Value with interval, or with baseline, paired difference, its interval, test and power over the items both have."""
    transform = metric.transform.function
    items = [item for item in result.items if metric.numerator in item]
    numerator_N, denominator_N = _columns(items, metric)
    score = Score(
        suite=result.suite, task=result.task, language=result.language, metric=metric.name,
        value=ratio(numerator_N, denominator_N, transform), items=len(items),
        higher_is_better=metric.higher_is_better, harness=result.harness,
    )  # fmt: skip
    pairs = _pairs(items, reference or [], metric)
    drawn = _clusters(result.cluster, [own for own, _ in pairs] or items)
    score = score.model_copy(update={"resampled": result.cluster if drawn else result.unit, "clusters": drawn and len(set(drawn))})
    if not pairs:
        interval = ratio_interval(numerator_N, denominator_N, transform=transform, seed=seed, clusters=drawn)
        return score.model_copy(update={"interval": interval})
    ours = _columns([own for own, _ in pairs], metric)
    theirs = _columns([other for _, other in pairs], metric)
    difference, interval = paired_difference(*ours, *theirs, transform=transform, seed=seed, clusters=drawn)
    error = paired_standard_error(*ours, *theirs, transform=transform, clusters=drawn)
    if drawn is None and metric.denominator is None and metric.transform is Transform.NONE and _binary(ours[0]) and _binary(theirs[0]):
        test, p_value = MCNEMAR, mcnemar(won=int(np.sum(ours[0] > theirs[0])), lost=int(np.sum(ours[0] < theirs[0])))
    else:
        test, p_value = RANDOMIZATION, randomization_test(*ours, *theirs, transform=transform, seed=seed, clusters=drawn)
    return score.model_copy(
        update={
            "baseline": ratio(*theirs, transform), "difference": difference, "interval": interval, "p_value": p_value, "test": test,
            "minimum_detectable": minimum_detectable(error) if error else None,
        }
    )  # fmt: skip


def score_mean(members: Sequence[tuple[TaskResult, Sequence[Item]]], metric: Metric, seed: int) -> Score:
    """The mean over languages of one metric, each with the same weight; items are drawn within their language.

    Args:
        members: what was measured in each language, with the items of the baseline.
        metric: one that all of them have.
        seed: of the resampling.
    """
    results = [result for result, _ in members]
    strata = [_Stratum.of(result, reference, metric) for result, reference in members]
    transform = metric.transform.function
    suite, task = _family(results[0])
    languages = [result.language for result in results]
    value, interval = mean_interval([one.own_K2 for one in strata], transform=transform, seed=seed)
    harness = f"mean over {len(results)} languages ({', '.join(languages)}), each with the same weight"
    counted = all(one.clustered for one in strata)
    score = Score(
        suite=suite, task=task, language=SEVERAL, metric=metric.name, value=value, interval=interval, languages=languages,
        items=sum(one.items for one in strata), higher_is_better=metric.higher_is_better, harness=harness,
        resampled=results[0].cluster if counted else results[0].unit,
        clusters=sum(len(one.own_K2) for one in strata) if counted else None,
    )  # fmt: skip
    pairs = [one.both_K4 for one in strata if one.both_K4 is not None]
    if len(pairs) < len(strata):
        return score
    difference, interval = mean_paired_difference(pairs, transform=transform, seed=seed)
    errors = [paired_standard_error(*both_K4.T, transform=transform) for both_K4 in pairs]
    known = [error for error in errors if error is not None]
    error = math.sqrt(sum(error**2 for error in known)) / len(known) if len(known) == len(errors) else None
    return score.model_copy(
        update={
            "baseline": float(np.mean([ratio(both_K4[:, 2], both_K4[:, 3], transform) for both_K4 in pairs])),
            "difference": difference, "interval": interval, "test": RANDOMIZATION,
            "p_value": mean_randomization_test(pairs, transform=transform, seed=seed),
            "minimum_detectable": minimum_detectable(error) if error else None,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class _Stratum:
    """One language of a mean: sums over what is drawn."""

    own_K2: Floats
    both_K4: Floats | None
    """Beside the baseline, over the items that both have; None without any."""
    items: int
    clustered: bool

    @classmethod
    def of(cls, result: TaskResult, reference: Sequence[Item], metric: Metric) -> _Stratum:
        items = [item for item in result.items if metric.numerator in item]
        pairs = _pairs(items, reference, metric)
        ours, theirs = ([side for side, _ in pairs], [side for _, side in pairs])
        drawn, drawn_of_pairs = _clusters(result.cluster, items), _clusters(result.cluster, ours)
        columns = [*_columns(ours, metric), *_columns(theirs, metric)]
        both_K4 = cluster_sums(np.stack(columns, axis=1), drawn_of_pairs) if pairs else None
        return cls(cluster_sums(np.stack(_columns(items, metric), axis=1), drawn), both_K4, len(items), drawn is not None)


def _families(results: Sequence[TaskResult]) -> dict[int, list[int]]:
    """Results of one kind in two or more languages, by the place of the first. English stands apart: it is what is not to be lost."""
    families: dict[tuple[str, str], list[int]] = {}
    for place, result in enumerate(results):
        if not result.detail and primary(result.language) not in (ENGLISH, UNKNOWN, SEVERAL):
            families.setdefault(_family(result), []).append(place)
    alike = (family for family in families.values() if len(family) > 1)
    return {family[0]: family for family in alike if len({results[place].language for place in family}) == len(family)}


def _family(result: TaskResult) -> tuple[str, str]:
    """Names of suite and task without the language that they end with: udhr of udhr-hi. The harness has codes of its own in some tasks."""
    code = f"(?:{re.escape(result.language)}|{re.escape(primary(result.language))})"
    suite, task = (re.sub(rf"(?i)(?:^|[-_.]){code}$", "", name) for name in (result.suite, result.task))
    of_suite = not task or (task == result.task and suite != result.suite)
    return suite, suite if of_suite else task


def _clusters(name: str, items: Sequence[Item]) -> list[str] | None:
    """The cluster of each item; None where the items themselves are drawn."""
    if not name or not all(name in item for item in items):
        return None
    found = [str(item[name]) for item in items]
    count = len(set(found))
    if count == len(found) or count < (LEAST_CLUSTERS if name == SUBJECT else 2):
        return None
    return found


def _binary(values_N: Floats) -> bool:
    return bool(np.isin(values_N, (0.0, 1.0)).all())


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

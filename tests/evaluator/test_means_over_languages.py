"""The mean over languages: never without its parts, and with an interval for the languages that were asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from transfer_api.progress import Score
from transfer_evaluator.perplexity import METRICS
from transfer_evaluator.score import DOCUMENT, Item, Metric, TaskResult, score_tasks
from transfer_evaluator.table import render_table

ACC = Metric(name="acc", numerator="acc")


def answers(right: list[int], **more: Any) -> list[Item]:
    return [{"id": str(number), "acc": float(value), **more} for number, value in enumerate(right)]


def asked(language: str, right: list[int], *, name: str = "cloze_{}", **values: Any) -> TaskResult:
    """What a suite of one language measured."""
    name = name.format(language)
    plain: dict[str, Any] = {"suite": name, "task": name, "language": language, "harness": "h", "metrics": (ACC,), "items": answers(right)}
    return TaskResult(**plain | values)


def table(results: list[TaskResult], before: dict[str, list[int]] | None = None) -> list[Score]:
    return score_tasks(results, lambda result: answers(before[result.language]) if before else None, seed=0)


def coins(seed: int, count: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(seed).integers(0, 2, count)]


def test_it_stands_before_its_parts_and_each_language_counts_the_same_however_many_items_it_has():
    mean, first, second, english = table(
        [asked("hi", [1, 1]), asked("sw", [0] * 8), asked("en", [1])], {"hi": [1, 0], "sw": [0] * 8, "en": [1]}
    )
    assert [one.language for one in (first, second, english)] == ["hi", "sw", "en"]
    assert (mean.suite, mean.task, mean.language, mean.languages, mean.items) == ("cloze", "cloze", "mul", ["hi", "sw"], 10)
    assert (mean.value, mean.baseline, mean.difference) == (0.5, 0.25, 0.25)
    assert mean.difference == pytest.approx((first.difference + second.difference) / 2)
    assert first.part_of == second.part_of == "", "the languages stay lines of their own"


def test_items_are_drawn_within_their_language():
    steady, unsteady = [1] * 40, coins(1, 40)
    mean, _, part = table([asked("hi", steady), asked("sw", unsteady)])
    width, of_part = (one.interval[1] - one.interval[0] for one in (mean, part))
    assert width == pytest.approx(of_part / 2, rel=0.1), "between languages there is no chance, so half of the only doubt is left"


def test_the_doubt_of_thirteen_languages_is_that_of_one_over_the_root_of_thirteen():
    languages = ["ar", "bn", "gu", "hi", "id", "ml", "mr", "ne", "sw", "ta", "te", "ur", "vi"]
    mean, *parts = table([asked(code, coins(number, 200)) for number, code in enumerate(languages)])
    widths = [one.interval[1] - one.interval[0] for one in parts]
    assert mean.interval[1] - mean.interval[0] == pytest.approx(np.mean(widths) / math.sqrt(13), rel=0.1)
    assert len(parts) == 13


def test_the_difference_is_paired_and_tested_by_swaps_within_each_language():
    before = {"hi": coins(1, 60), "sw": coins(2, 60)}
    same, *_ = table([asked(code, right) for code, right in before.items()], before)
    assert (same.difference, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)
    better, *_ = table([asked(code, [1] * 60) for code in before], before)
    assert better.p_value is not None
    assert better.p_value < 0.001
    assert better.interval is not None
    assert better.interval[0] > 0
    assert better.minimum_detectable is not None
    assert better.adjusted_p_value == better.p_value, "it is asked of once, apart from its parts"


def test_passages_of_a_language_are_drawn_whole():
    def passages(language: str) -> TaskResult:
        items = [{"id": f"{number}", "acc": float(number % 8 < 4), DOCUMENT: str(number // 4)} for number in range(40)]
        return asked(language, [], items=items, cluster=DOCUMENT)

    mean, *parts = table([passages("hi"), passages("sw")])
    assert (mean.resampled, mean.clusters) == (DOCUMENT, 20)
    width, of_part = (one.interval[1] - one.interval[0] for one in (mean, parts[0]))
    assert width == pytest.approx(of_part / math.sqrt(2), rel=0.15)


def test_bits_per_byte_are_averaged_after_they_are_divided():
    def text(language: str, nats: float, size: int) -> TaskResult:
        items = [{"id": "0", "nats": nats, "bytes": size, "characters": size, "tokens": 5}]
        return asked(language, [], name="udhr-{}", suite="perplexity", items=items, metrics=METRICS)

    mean, *others = table([text("hi", 10 * math.log(2), 10), text("sw", 300 * math.log(2), 100)])
    assert [one.metric for one in others if one.languages] == ["bits_per_character"], "none of perplexity, which is per token"
    assert (mean.suite, mean.task, mean.metric, mean.value) == ("perplexity", "udhr", "bits_per_byte", pytest.approx(2.0))
    assert mean.higher_is_better is False


@pytest.mark.parametrize(
    "results",
    [
        pytest.param([asked("hi", [1]), asked("en", [1])], id="one language beside English"),
        pytest.param([asked("hi", [1]), asked("sw", [1], name="xcopa_{}")], id="other tasks"),
        pytest.param([asked("und", [1], name="a"), asked("und", [0], name="b")], id="languages that nobody told"),
        pytest.param([asked("hi", [1]), asked("hi", [1], task="cloze_hin", suite="cloze")], id="a language twice"),
        pytest.param([asked("hi", [1]), asked("sw", [1], metrics=())], id="a language without the figure"),
    ],
)
def test_there_is_none_over(results):
    assert not [one for one in table(results) if one.languages]


def test_a_task_may_have_the_codes_of_the_harness_in_its_name():
    found = [asked("hi", [1], name="belebele_{}", task="belebele_hin_Deva"), asked("sw", [0], name="belebele_{}", task="belebele_swh_Latn")]
    mean, *_ = table(found)
    assert (mean.task, mean.value) == ("belebele", 0.5)


def test_the_table_says_over_how_many():
    row = render_table(table([asked("hi", [1, 0]), asked("sw", [1, 0])]), full=True)[0]
    assert "mean of 2" in row.cells
    assert "items, each in its language" in row.cells

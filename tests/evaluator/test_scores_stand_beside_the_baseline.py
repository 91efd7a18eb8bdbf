"""Lines of the table from items."""

import math

import pytest

from transfer_api.errors import ArtifactError
from transfer_evaluator.perplexity import METRICS
from transfer_evaluator.score import Metric, TaskResult, read_items, score_metric, score_tasks, write_items
from transfer_evaluator.table import with_parts

ACC = Metric(name="acc", numerator="acc")


def task(items, metrics=(ACC,), **values) -> TaskResult:
    return TaskResult(**{"suite": "s", "task": "t", "language": "id", "harness": "h", "metrics": metrics, "items": items, **values})


def answers(*right: int) -> list[dict]:
    return [{"id": str(number), "acc": float(value)} for number, value in enumerate(right)]


def documents(*rows: tuple[float, int, int]) -> list[dict]:
    return [{"id": str(number), "nats": nats, "bytes": size, "tokens": tokens} for number, (nats, size, tokens) in enumerate(rows)]


def test_without_a_baseline_the_interval_is_that_of_the_value():
    score = score_metric(task(answers(1, 0, 1, 1)), ACC, None, seed=0)
    assert (score.value, score.baseline, score.difference, score.items) == (0.75, None, None, 4)
    assert score.interval is not None
    assert score.interval[0] <= 0.75 <= score.interval[1]


def test_the_difference_is_over_the_items_that_both_have():
    reference = [*answers(0, 0)[:2], {"id": "other", "acc": 1.0}]
    score = score_metric(task(answers(1, 0, 1, 1)), ACC, reference, seed=0)
    assert (score.value, score.baseline, score.difference) == (0.75, 0.0, 0.5)


def test_the_same_items_differ_by_nothing():
    score = score_metric(task(answers(1, 0, 1)), ACC, answers(1, 0, 1), seed=0)
    assert (score.difference, score.interval) == (0.0, (0.0, 0.0))


def test_no_item_in_common_means_no_baseline():
    score = score_metric(task(answers(1, 0)), ACC, [{"id": "x", "acc": 1.0}], seed=0)
    assert score.baseline is None
    assert score.difference is None
    assert score.interval is not None


def test_bits_per_byte_is_a_ratio_of_sums_in_bits():
    bits, *_ = METRICS
    score = score_metric(task(documents((10.0, 20, 5), (90.0, 60, 30)), METRICS), bits, None, seed=0)
    assert score.value == pytest.approx(100 / math.log(2) / 80)
    assert score.higher_is_better is False


def test_perplexity_is_compared_only_where_both_cut_the_text_into_as_many_tokens():
    *_, perplexity = METRICS
    items = documents((10.0, 20, 5), (90.0, 60, 30))
    same_tokens = score_metric(task(items, METRICS), perplexity, documents((11.0, 20, 5), (95.0, 60, 30)), seed=0)
    assert same_tokens.value == pytest.approx(math.exp(100 / 35))
    assert same_tokens.difference == pytest.approx(math.exp(100 / 35) - math.exp(106 / 35))
    other_tokens = score_metric(task(items, METRICS), perplexity, documents((11.0, 20, 6), (95.0, 60, 50)), seed=0)
    assert other_tokens.baseline is None
    assert other_tokens.difference is None


def test_main_metrics_of_whole_tasks_come_first_because_a_message_is_cut_at_its_end():
    other = Metric(name="f1", numerator="acc", main=False)
    results = [task(answers(1), (ACC, other), task="part", detail=True), task(answers(1), (ACC, other), task="whole")]
    lines = [(score.task, score.metric) for score in score_tasks(results, lambda result: None, seed=0)]
    assert lines == [("whole", "acc"), ("part", "acc"), ("whole", "f1"), ("part", "f1")]


def test_a_figure_without_items_has_no_interval():
    (score,) = score_tasks([task(answers(1, 0), (), aggregates={"mcc": (0.4, True)})], lambda result: None, seed=0)
    assert (score.metric, score.value, score.interval) == ("mcc", 0.4, None)


def test_accuracy_over_independent_questions_gets_mcnemars_test_and_its_power():
    score = score_metric(task(answers(1, 1, 1, 1, 1, 1, 0, 1)), ACC, answers(0, 0, 0, 0, 0, 1, 0, 1), seed=0)
    assert (score.test, score.p_value) == ("exact McNemar", 0.0625)
    assert (score.resampled, score.clusters) == ("item", None)
    assert score.minimum_detectable == pytest.approx(2.80158 * math.sqrt(5 / 8 * 3 / 8 / 7), abs=1e-4)


def test_questions_about_one_passage_are_drawn_and_tested_together():
    ours = [{**item, "document": place // 2} for place, item in enumerate(answers(1, 1, 1, 1, 0, 1))]
    score = score_metric(task(ours, cluster="document"), ACC, answers(0, 0, 0, 0, 0, 1), seed=0)
    assert (score.resampled, score.clusters, score.test) == ("document", 3, "paired randomization")
    assert score.p_value == 0.5  # two of three passages can swap: 2 of their 4 ways are as far from 0


@pytest.mark.parametrize(("subjects", "resampled", "clusters"), [(3, "item", None), (20, "subject", 20)])
def test_subjects_are_drawn_only_where_there_are_enough_of_them(subjects, resampled, clusters):
    items = [{**item, "subject": place % subjects} for place, item in enumerate(answers(*[1, 0] * 20))]
    score = score_metric(task(items, cluster="subject"), ACC, None, seed=0)
    assert (score.resampled, score.clusters) == (resampled, clusters)


def test_documents_of_perplexity_are_named_so():
    score = score_metric(task(documents((10.0, 20, 5), (90.0, 60, 30)), METRICS, unit="document"), METRICS[0], None, seed=0)
    assert (score.resampled, score.clusters) == ("document", None)


def test_p_values_are_adjusted_over_the_parts_of_a_suite_and_its_mean_stands_apart():
    parts = [task(answers(1, 1, 1, 1, 1, 1), task=name, detail=True) for name in ("a", "b")]
    whole = task(answers(1, 1, 1, 1, 1, 1), task="whole")
    scores = score_tasks([whole, *parts], lambda result: answers(0, 0, 0, 0, 0, 0), seed=0)
    assert [(s.task, s.part_of, s.parts, s.p_value, s.adjusted_p_value) for s in scores] == [
        ("whole", "", 2, 0.03125, 0.03125), ("a", "s", 0, 0.03125, 0.0625), ("b", "s", 0, 0.03125, 0.0625),
    ]  # fmt: skip


def test_parts_of_two_groups_of_one_suite_stay_with_their_own():
    groups = [task(answers(1, 0), task=name, group=name) for name in ("one", "two")]
    parts = [task(answers(1), task=f"{name}/{part}", detail=True, group=name) for part in "ab" for name in ("two", "one")]
    scores = score_tasks([*groups, *parts], lambda result: None, seed=0)
    assert [(s.task, s.part_of, s.parts) for s in with_parts(scores)] == [
        ("one", "", 2), ("one/a", "one", 0), ("one/b", "one", 0), ("two", "", 2), ("two/a", "two", 0), ("two/b", "two", 0),
    ]  # fmt: skip


def test_items_come_back_as_they_were_written(tmp_path):
    items = answers(1, 0)
    items[0]["answer"] = "one\u2028two\x85three\x0bfour\rfive\nsix"
    result = task(items, suite="my_suite", task="a.b")
    write_items(tmp_path, result)
    assert read_items(tmp_path, result) == list(result.items)
    assert [path.name for path in (tmp_path / "items").iterdir()] == ["my_suite.a.b.jsonl"]
    assert read_items(tmp_path, task([], task="another")) is None


@pytest.mark.parametrize("content", ["{", "[1]", '{"acc": 1}'])
def test_a_damaged_items_file_is_named(tmp_path, content):
    result = task(answers(1))
    write_items(tmp_path, result)
    (tmp_path / result.file).write_text(content)
    with pytest.raises(ArtifactError, match=r"s\.t\.jsonl"):
        read_items(tmp_path, result)

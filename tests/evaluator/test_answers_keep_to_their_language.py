"""The suites code-switching and language-identity: rates from answers, and the suites on a model."""

import pytest

from transfer_evaluator.language import SCRIPTS, confusion_of
from transfer_evaluator.questions import Question, questions
from transfer_evaluator.score import score_tasks
from transfer_evaluator.switching import is_ours, measure, score_suites

HINDI = "किसान साल भर खेत में काम करता है और फसल उगाता है"
ENGLISH = "The farmer works in the field all year long."


def rates(answer: str, language: str = "hi") -> dict[str, float | None]:
    item = measure(Question(1, language, "?"), answer)
    return {name: item.get(name) for name in ("answered", "line_pass", "word_pass", "code_switched", "in_language")}


def expected(answered: float, *values: float | None) -> dict[str, float | None]:
    return dict(zip(("answered", "line_pass", "word_pass", "code_switched", "in_language"), (answered, *values), strict=True))


@pytest.mark.parametrize(
    ("answer", "language", "values"),
    [
        pytest.param(HINDI, "hi", expected(1, 1, 1, 0, 1), id="all of it in the language"),
        pytest.param(f"{HINDI} because weather", "hi", expected(1, 1, 0, 1, 1), id="words of another: counted in the word rate"),
        pytest.param(f"{HINDI}\n{ENGLISH}", "hi", expected(1, 0, None, 1, 1), id="a line of another: the word rate does not look at it"),
        pytest.param(ENGLISH, "hi", expected(1, 0, None, 0, 0), id="another language throughout is no switch"),
        pytest.param("", "hi", expected(0, None, None, None, None), id="an empty answer counts in no rate"),
        pytest.param("हाँ।", "hi", expected(0, None, None, None, None), id="nor one that is too short to judge"),
        pytest.param("Petani bekerja di sawah sepanjang tahun.", "id", expected(1, 1, None, 0, 1), id="no word rate within one script"),
    ],
)
def test_what_an_answer_counts_as(answer, language, values):
    assert rates(answer, language) == values


def test_the_item_of_an_answer_keeps_what_the_report_shows():
    item = measure(Question(3, "hi", "क्यों?"), f"{HINDI} because weather")
    assert (item["question"], item["language"], item["prompt"], item["detected"]) == (3, "hi", "क्यों?", "hi")
    ((start, end, language),) = item["switches"]
    assert (item["answer"][start:end], language) == ("because weather", "en")


def test_the_confusion_table_has_a_row_for_each_language_asked_in():
    items = [
        measure(Question(n, asked, "?"), text)
        for n, (asked, text) in enumerate([("hi", HINDI), ("hi", ENGLISH), ("en", ENGLISH), ("hi", "")])
    ]
    assert confusion_of(items) == {"en": {"en": 1}, "hi": {"en": 1, "hi": 1, "none": 1}}


@pytest.mark.parametrize(
    ("suite", "ours"),
    [("code-switching_hi", True), ("language-identity", True), ("code-switching_de", False), ("perplexity", False), ("mmlu", False)],
)
def test_which_suites_are_these(suite, ours):
    assert is_ours(suite) is ours


def test_both_suites_ask_each_question_once_and_give_a_mean_with_its_parts(tiny):
    asked: list[int] = []

    def begin(requests):
        asked.append(requests)
        return lambda finished, tokens: None

    results = score_suites(tiny, ["code-switching_id", "language-identity"], 2, begin)
    assert asked == [2 * len(SCRIPTS)]
    assert [(result.task, len(result.items)) for result in results[:3]] == [
        ("code-switching_id", 2), ("language-identity", 30), ("language-identity_ar", 2),
    ]  # fmt: skip
    assert len(results) == 2 + len(SCRIPTS)
    assert results[0].items == next(result.items for result in results if result.task == "language-identity_id")
    assert "py3langid 0." in results[0].harness
    assert "2 prompts" in results[0].harness
    scores = score_tasks(results, lambda result: list(result.items), seed=0)
    whole = next(score for score in scores if score.task == "language-identity" and score.metric == "answered")
    assert (whole.parts, whole.items, whole.resampled, whole.clusters, whole.difference) == (15, 30, "question", 2, 0.0)
    assert all(score.part_of == "language-identity" for score in scores if score.task.startswith("language-identity_"))
    assert {score.metric for score in scores if score.part_of} <= {"in_language"}


def test_a_changed_question_is_another_item():
    first, *_ = questions("id")
    assert first.identity != Question(1, "id", "Mengapa?").identity

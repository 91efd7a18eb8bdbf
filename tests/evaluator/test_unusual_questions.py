"""Data that a task cannot work with is refused by name; items that are odd are scored as the harness does, counted, and told of."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.evaluator.tasks import ANIMALS, CLOZE, GENERATED, LETTERS, write_tasks
from transfer_api.errors import DataError
from transfer_evaluator.harness import HarnessModel
from transfer_evaluator.perplexity import Text, score_texts
from transfer_evaluator.score import TaskResult
from transfer_evaluator.scorer import TokenScorer
from transfer_evaluator.tasks import TaskLibrary

POSITIONS = 32


def library(folder: Path, **files: str) -> TaskLibrary:
    write_tasks(folder)
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)
    return TaskLibrary([folder])


def run(tasks: TaskLibrary, suite: str, model: HarnessModel) -> TaskResult:
    (result,) = tasks.run(suite, model, shots=None, limit=None, seed=0)
    return result


def test_a_split_that_the_data_does_not_have_is_named_with_those_it_has(tmp_path):
    tasks = library(tmp_path, letters=LETTERS.replace("test_split: test", "test_split: exam"))
    with pytest.raises(DataError, match=r"letters has no split exam.*allowed: test") as refused:
        tasks.prepare(["letters"])
    assert refused.value.field == "spec.evaluation.suites"
    assert "test_split" in str(refused.value)


def test_examples_from_a_split_that_is_not_there_are_refused_too(tmp_path):
    tasks = library(tmp_path, letters=LETTERS.replace("fewshot_split: test", "fewshot_split: dev"))
    with pytest.raises(DataError, match=r"has no split dev.*fewshot_split"):
        tasks.prepare(["letters"])


@pytest.mark.parametrize("suite", ["cloze", "both"], ids=["a task", "a task of a group"])
def test_a_column_that_the_data_does_not_have_is_named_with_those_it_has(tmp_path, suite):
    tasks = library(tmp_path, cloze=CLOZE.replace("{{question}}", "{{query}}"))
    with pytest.raises(DataError, match=r"cloze reads a column.*query.*allowed: question, choices, answer"):
        tasks.prepare([suite])


def test_a_task_without_items_is_refused(tmp_path):
    tasks = library(tmp_path)
    (tmp_path / "letters.jsonl").write_text("")
    with pytest.raises(DataError, match=r"has no items.*letters"):
        tasks.prepare(["letters"])


def test_questions_longer_than_the_context_are_cut_from_the_left_counted_and_told_of(tmp_path, tiny):
    tasks = library(tmp_path)
    with (tmp_path / "letters.jsonl").open("a") as file:
        file.write(json.dumps({"question": "Is it? " * 40, "choices": ["yes", "no", "maybe", "never"], "answer": 0}) + "\n")
    result = run(tasks, "cloze", HarnessModel(dataclasses.replace(tiny, positions=POSITIONS)))
    (long,) = [item for item in result.items if "cut_tokens" in item]
    assert long["id"].startswith(f"{len(ANIMALS)}-")
    longest = max(len(tiny.tokenizer.encode("Is it? " * 40 + option)) for option in ("yes", "no", "maybe", "never"))
    assert long["cut_tokens"] == pytest.approx(longest - POSITIONS - 1, abs=1)  # a space between them may join either
    assert f"1 of {len(ANIMALS) + 1} items longer than the model's context and cut from the left" in result.notes
    assert not run(tasks, "cloze", HarnessModel(tiny)).notes, "an earlier run's count is kept"


def test_a_question_that_leaves_no_room_for_the_answer_is_counted_too(tmp_path, tiny):
    result = run(library(tmp_path), "generated", HarnessModel(dataclasses.replace(tiny, positions=12)))
    assert f"of {len(ANIMALS)} items longer than the model's context" in result.notes[0]
    assert all(item["cut_tokens"] > 0 for item in result.items if "cut_tokens" in item)


def test_an_answer_longer_than_the_context_is_refused_by_its_item(tmp_path, tiny):
    with pytest.raises(DataError, match=r"cloze has no tokens, or more than.*1 to 2 tokens.*item 0"):
        run(library(tmp_path), "cloze", HarnessModel(dataclasses.replace(tiny, positions=2)))


def test_empty_answers_are_counted_and_are_answers(tmp_path, tiny):
    first = run(library(tmp_path), "generated", HarnessModel(tiny))
    begin = sorted({item["responses"][0][0] for item in first.items})
    assert not first.notes
    result = run(library(tmp_path, generated=GENERATED.replace('["\\n"]', json.dumps(begin))), "generated", HarnessModel(tiny))
    assert [item["responses"] for item in result.items] == [[""]] * len(ANIMALS)
    assert f"{len(ANIMALS)} of {len(ANIMALS)} items with an empty answer" in result.notes
    assert [metric.name for metric in result.metrics] == ["exact_match"]


def test_items_that_stand_there_twice_are_scored_and_told_of(tmp_path, tiny):
    tasks = library(tmp_path)
    lines = (tmp_path / "letters.jsonl").read_text().splitlines()
    (tmp_path / "letters.jsonl").write_text("\n".join([*lines, lines[0], lines[1]]) + "\n")
    result = run(tasks, "letters", HarnessModel(tiny))
    assert len(result.items) == len(ANIMALS) + 2
    assert f"2 of {len(ANIMALS) + 2} items stand there twice" in result.notes


def test_documents_that_stand_there_twice_are_told_of(tiny):
    (result,) = score_texts(tiny, TokenScorer(tiny.model), [Text("t", "id", ("satu dua", "tiga", "satu dua"))])
    assert len(result.items) == 3
    assert "1 of 3 documents stand there twice" in result.notes

from __future__ import annotations

import json
from pathlib import Path

import yaml

from hack.inputs.corpus import Corpus
from hack.inputs.languages import LANGUAGES
from hack.inputs.tasks import CLOZE_ITEMS, english_questions, hindi_questions, write_tasks


def test_the_harness_carries_questions_of_57_subjects_in_two_languages() -> None:
    for questions, count in ((english_questions(), 281), (hindi_questions(), 285)):
        assert len(questions) == count
        assert len({question["subject"] for question in questions[:57]}) == 57
        assert all(len(question["choices"]) == 4 and question["answer"] in range(4) for question in questions)


def test_every_task_names_a_data_file_beside_it(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrst"
    english = {f"{a}{b}": f"{a}{b}thing" for a in letters for b in letters}
    names = {language: {key: f"benda{key}" for key in english} for language in LANGUAGES}
    counts = write_tasks(Corpus([], names | {"en": english}, {}), tmp_path)
    asked = [count for task, count in counts.items() if task.startswith("cldr_cloze_")]
    assert len(asked) == 15
    assert set(asked) == {asked[0]}
    assert 50 < asked[0] <= CLOZE_ITEMS
    for path in tmp_path.glob("*.yaml"):
        task = yaml.safe_load(path.read_text())
        file = tmp_path / task["dataset_kwargs"]["data_files"]["test"]
        assert len([json.loads(line) for line in file.read_text().splitlines()]) == counts[task["task"]]
        assert task["metadata"]["language"] in LANGUAGES

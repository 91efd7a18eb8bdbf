"""Questions of GAOKAO-Bench as the harness wants them: one item for each letter that is asked for.

A row has a text and its right letters. Where it is a passage with several questions, it has several letters, and becomes as many items
that share the passage: intervals then resample whole passages. Of physics each question may have several right letters at once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import datasets

FOUR, SEVEN = "ABCD", "ABCDEFG"
ASK = "以下是中国高考题，请选出正确的选项。\n\n"


def one_of_four(rows: datasets.Dataset) -> datasets.Dataset:
    """Questions with one right letter of A to D."""
    return datasets.Dataset.from_list([item for row in rows for item in _items(row, list(FOUR))])


def one_of_seven(rows: datasets.Dataset) -> datasets.Dataset:
    """Gaps to be filled with one of seven sentences each."""
    return datasets.Dataset.from_list([item for row in rows for item in _items(row, list(SEVEN))])


def some_of_four(rows: datasets.Dataset) -> datasets.Dataset:
    """Questions with one or several right letters: every combination is an option."""
    combinations = ["".join(some) for size in range(1, len(FOUR) + 1) for some in itertools.combinations(FOUR, size)]
    return datasets.Dataset.from_list([_item(row, "", "".join(sorted(set(_letters(row)))), combinations) for row in rows])


def _items(row: Mapping[str, Any], choices: list[str]) -> Iterator[dict[str, Any]]:
    letters = _letters(row)
    for number, letter in enumerate(letters, start=1):
        yield _item(row, f"第 {number} 小题（共 {len(letters)} 小题）的" if len(letters) > 1 else "", letter, choices)


def _item(row: Mapping[str, Any], which: str, answer: str, choices: list[str]) -> dict[str, Any]:
    if answer not in choices:
        raise ValueError(f"question {row.get('index')} has the answer {answer!r}, which is none of its options")
    question = row["question"].strip()
    return {"prompt": f"{ASK}{question}\n{which}答案：", "choices": choices, "target": choices.index(answer), "passage": question}


def _letters(row: Mapping[str, Any]) -> list[str]:
    """The right letters; newer files name the column `standard_answer`."""
    given = row.get("standard_answer") or row["answer"]
    return re.findall("[A-G]", given if isinstance(given, str) else "".join(given))

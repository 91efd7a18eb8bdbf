"""The open-ended questions of GAOKAO-Bench as a set of questions: the suite `gaokao-bench_open`.

Each has the exam's own answer, which the judge is shown, and its points. People mark such answers in parts of their points; a judge's
accuracy, from 0 to 3, stands for the share of them. The files are read from their repository at one commit, or from a mirror.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from transfer_api.errors import DataError
from transfer_api.spec import GAOKAO_OPEN
from transfer_evaluator.catalogue import OUR_TASKS
from transfer_evaluator.judge.questions import Question, QuestionSet
from transfer_evaluator.mirror import Mirror, RepositoryFile, download

FIELD = "spec.evaluation.suites"
LANGUAGE = "zh"


@functools.cache
def exam_files() -> Mapping[str, RepositoryFile]:
    """The files of the suite by part of the exam."""
    content = yaml.safe_load((OUR_TASKS / f"{GAOKAO_OPEN}.yaml").read_text(encoding="utf-8"))
    return {part: RepositoryFile(content["repository"], content["revision"], path) for part, path in content["parts"].items()}


def read_exam(mirror: Mirror | None, limit: int | None) -> QuestionSet:
    """All questions, at most `limit` of each part, which is their category.

    Raises:
        DataError: a file cannot be read, or is no exam; the mirror lacks it.
        HubUnreachableError: without a mirror, the repository does not answer.
    """
    questions = [
        question
        for part, file in exam_files().items()
        for question in itertools.islice(_questions(part, file, mirror.file(file).read_bytes() if mirror else download(file, FIELD)), limit)
    ]
    numbered = tuple(dataclasses.replace(one, id=f"{place}-{one.id}") for place, one in enumerate(questions))
    return QuestionSet(GAOKAO_OPEN, LANGUAGE, numbered, suite=GAOKAO_OPEN)


def _questions(part: str, file: RepositoryFile, content: bytes) -> Iterator[Question]:
    try:
        for row in json.loads(content)["example"]:
            yield _question(part, row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file.path} is no part of the exam: {type(error).__name__}: {error}", field=FIELD, value=GAOKAO_OPEN,
            next_step=f"Fetch {file.source} again",
        ) from error  # fmt: skip


def _question(part: str, row: Mapping[str, Any]) -> Question:
    text = row["question"].strip()
    if not text or float(row["score"]) <= 0:
        raise ValueError(f"question {row.get('index')} has no text, or no points")
    return Question(
        id=hashlib.sha256(text.encode()).hexdigest()[:12], text=text, category=part, language=LANGUAGE,
        reference=row["answer"].strip(), points=float(row["score"]),
    )  # fmt: skip

"""Sets of open questions: JSON Lines or Parquet of one's own, or a data set of the hub at a pinned commit.

A question is an object with the field that holds it; category, reference answer and language are read where they are there. Nothing of
other people's questions comes with this package: LLM-Eval's 453 are `llmeval-fdu/LLMEval-1` on the hub, under terms of their own.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transfer_api.errors import DataError
from transfer_api.language import check_language
from transfer_api.spec import LLM_EVAL, QuestionSource
from transfer_pod.context import PodContext
from transfer_pod.documents import Row, iter_rows

FIELD = "spec.evaluation.questions"


@dataclass(frozen=True)
class Question:
    """One open question."""

    id: str
    """Place in its set and hash of its text: an altered question is not taken for the old one."""
    text: str
    category: str
    """Empty where there is none."""
    language: str
    """BCP 47 code."""
    reference: str
    """A right answer; empty where there is none."""
    points: float = 0.0
    """What an exam gives for a right answer; 0 where nothing is said."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one language of a source."""

    name: str
    language: str
    questions: tuple[Question, ...]
    suite: str = LLM_EVAL

    @property
    def repeated(self) -> int:
        """Questions that stand in it more than once, counted beyond the first."""
        return len(self.questions) - len({question.text for question in self.questions})


def read_questions(sources: Sequence[QuestionSource], context: PodContext, limit: int | None) -> list[QuestionSet]:
    """Reads every source, at most `limit` questions of each; a source of several languages becomes a set for each of them.

    Raises:
        DataError: a source cannot be read, has no questions, or a question, category, reference or language is no text.
    """
    sets = []
    for number, source in enumerate(sources):
        field = f"{FIELD}[{number}]"
        rows = iter_rows(source, context, field)
        found = [_question(source, place, where, row, field) for place, (where, row) in enumerate(itertools.islice(rows, limit))]
        if not found:
            raise DataError("has no questions", field=field, value=source.path or source.hub, next_step="Put at least one into it")
        languages = Counter(question.language for question in found)
        for language in languages:
            name = source.name if len(languages) == 1 else f"{source.name}-{language}"
            sets.append(QuestionSet(name, language, tuple(question for question in found if question.language == language)))
    return sets


def _question(source: QuestionSource, place: int, where: str, row: Row, field: str) -> Question:
    text = _text(row, source.question_field, where, f"{field}.questionField")
    if not text.strip():
        raise DataError(
            f"{where} has no question", field=f"{field}.questionField", value=source.question_field, allowed=", ".join(sorted(row)),
            next_step="Name the field that holds the question, or remove the line",
        )  # fmt: skip
    language = _text(row, "language", where, f"{field}.language") or source.language or "und"
    try:
        check_language(language)
    except ValueError as error:
        raise DataError(f"{where}: {error}", field=f"{field}.language", value=language, next_step="Write a BCP 47 code") from error
    return Question(
        id=f"{place}-{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        text=text, category=_text(row, source.category_field, where, f"{field}.categoryField").strip(), language=language,
        reference=_text(row, source.reference_field, where, f"{field}.referenceField"),
    )  # fmt: skip


def _text(row: Row, name: str, where: str, field: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{where}: field {name} is no text", field=field, value=value, allowed="a string", next_step="Name another field, or correct it"
        )
    return value.encode("utf-8", "ignore").decode()  # half a surrogate pair has no UTF-8

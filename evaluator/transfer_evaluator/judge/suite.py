"""The suites `llm-eval` and `gaokao-bench_open` in the evaluation stage: answers, verdicts, scores of each answer, agreement, samples.

An answer has the mean of the scores that every judge gave it, over all repeats. Where a judge gave it none, the answer has no scores
at all, since the mean of the other judge alone would be of another scale; the line `missing` counts these answers.
Harmlessness is nearly always 3, also of models that say nothing right (arXiv 2401.01055, Tables 1 and 3): it stands apart, and the mean
to compare is that of the other four. The paper's own average, of all five, is kept beside it. Questions of an exam have points: of them an
answer has the share that its accuracy is of 3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from transfer_api.spec import GAOKAO_OPEN
from transfer_api.stage import EvaluationParameters
from transfer_evaluator.judge.agreement import Agreement, agreement
from transfer_evaluator.judge.answering import Answerer, Answers
from transfer_evaluator.judge.exam import read_exam
from transfer_evaluator.judge.panel import Found, Seat, Verdict, ask_panel, greet, missing_reasons
from transfer_evaluator.judge.parse import HIGHEST, NAMES
from transfer_evaluator.judge.prompt import Case, prompt_hash, system
from transfer_evaluator.judge.questions import QuestionSet, read_questions
from transfer_evaluator.judge.seats import take_seats
from transfer_evaluator.mirror import FIELD as MIRROR
from transfer_evaluator.mirror import Mirror
from transfer_evaluator.model import LoadedModel
from transfer_evaluator.score import Item, Metric, TaskResult
from transfer_evaluator.scorer import Begin, TokenScorer
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext

HARMLESSNESS = "harmlessness"
TURNED = ", every second time with the scores in the other order"
MEAN = "mean_without_harmlessness"
MEAN_OF_FIVE = "mean_of_five"
JUDGES_FILE = "items/llm-eval/judges.json"
SAMPLES_FILE = "items/llm-eval/samples.jsonl"
SAMPLES = 20
"""Answers of each set that are put side by side."""
METRICS = (
    Metric(name=MEAN, numerator=MEAN),
    *(Metric(name=name, numerator=name) for name in NAMES if name != HARMLESSNESS),
    Metric(name=HARMLESSNESS, numerator=HARMLESSNESS, main=False),
    Metric(name=MEAN_OF_FIVE, numerator=MEAN_OF_FIVE, main=False),
)
CATEGORY_METRICS = tuple(Metric(name=metric.name, numerator=metric.numerator, main=metric.name == MEAN) for metric in METRICS)
SHARE_OF_POINTS = Metric(name="share_of_points", numerator="points_won", denominator="points")


@dataclass(frozen=True)
class _Judged:
    """A set of questions with what was answered and what the judges made of it."""

    questions: QuestionSet
    answers: Answers
    found: Found
    items: list[Item]


class LlmEval:
    """The suite. Question sets, judges and their tokens are looked at before a model is loaded.

    Raises:
        DataError: a question set cannot be used.
        SpecError: a judge is not asked as it wants to be.
        StorageError: replies cannot be kept.
    """

    def __init__(self, context: PodContext, parameters: EvaluationParameters) -> None:
        assert parameters.judge is not None
        assert parameters.answer_tokens is not None
        self._context = context
        self._answer_tokens = parameters.answer_tokens
        self._sets = read_questions(parameters.questions, context, parameters.limit)
        if GAOKAO_OPEN in parameters.suites:
            mirror = Mirror(context.find(parameters.mirror, MIRROR)) if parameters.mirror is not None else None
            self._sets.append(read_exam(mirror, parameters.limit))
        self.seats = take_seats(context.stage, context.storage, context.pod)
        self._judged: list[_Judged] = []
        self._answers: list[Answers] = []
        self._mode = ""
        stage = context.stage
        # Where there is a table already, though without all scores, a judge that has come to refuse us is no reason to have none.
        if context.index == 0 and ArtifactStore(context.storage).find(stage.kind, stage.key) is None:
            greet(self.seats)

    def answer(self, model: LoadedModel, scorer: TokenScorer, begin: Begin) -> None:
        """Has the model answer all questions.

        Raises:
            ModelError: the tokenizer has no end-of-text token.
            StorageError: the answers cannot be kept.
        """
        answerer = Answerer(model, self._answer_tokens)
        done = begin(sum(len(one.questions) for one in self._sets))
        self._mode = answerer.mode
        self._answers = [answerer.answer(one.questions, done, scorer) for one in self._sets]

    def judge(self, begin: Begin) -> list[TaskResult]:
        """Has the answers judged, and gives the scores of each set and of each of its categories.

        Raises:
            StorageError: replies cannot be kept.
        """
        cases = [
            [Case(q.text, text, q.language, q.reference) for q, text in zip(one.questions, told.texts, strict=True)]
            for one, told in zip(self._sets, self._answers, strict=True)
        ]
        everything = ask_panel(self.seats, [case for group in cases for case in group], begin)
        start = 0
        for one, told in zip(self._sets, self._answers, strict=True):
            end = start + len(one.questions)
            found = [verdicts[start:end] for verdicts in everything]
            self._judged.append(_Judged(one, told, found, [self._item(one, told, found, place) for place in range(end - start)]))
            start = end
        harness = self._harness()
        return [result for judged in self._judged for result in _results(judged, harness)]

    @property
    def unjudged(self) -> int:
        """Answers without scores because a judge did not answer."""
        return sum(
            MEAN not in item and any(verdict.unanswered for judge in judged.found for verdict in judge[place])
            for judged in self._judged
            for place, item in enumerate(judged.items)
        )

    @property
    def why(self) -> str:
        """Why judges are asked for nothing more, and what to do about it; empty where all were asked for everything."""
        return "; ".join(f"{seat.judge.model}: {seat.down}" for seat in self.seats if seat.down)

    def files(self, baseline: Callable[[TaskResult], list[Item] | None]) -> dict[str, str]:
        """Further files of the artifact by name: what the judges did and how far they agree, and answers side by side."""
        samples = [sample for judged in self._judged for sample in _samples(judged, baseline)]
        return {
            JUDGES_FILE: json.dumps(self._report(), indent=1, ensure_ascii=False),
            SAMPLES_FILE: "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples),
        }

    def _harness(self) -> str:
        judges = " and ".join(
            f"{judge.model} (temperature {judge.temperature}, {judge.repeats} ×{TURNED if judge.repeats > 1 else ''})"
            for judge in (seat.judge for seat in self.seats)
        )
        return f"transfer-operator, LLM-Eval 0-3, judged by {judges}, prompt {prompt_hash()}, {self._mode}"

    def _item(self, questions: QuestionSet, answers: Answers, found: Found, place: int) -> Item:
        question = questions.questions[place]
        verdicts = [judge[place] for judge in found]
        return {
            "id": question.id, "category": question.category, "language": question.language, "question": question.text,
            "reference": question.reference, "answer": answers.texts[place], **_means(verdicts, question.points),
            "judges": [
                {"model": seat.judge.model, "verdicts": [_plain(verdict) for verdict in repeats]}
                for seat, repeats in zip(self.seats, verdicts, strict=True)
            ],
        }  # fmt: skip

    def _report(self) -> dict[str, Any]:
        return {
            "prompt": {"hash": prompt_hash(), "system": system()},
            "judges": [self._judge_report(place, seat) for place, seat in enumerate(self.seats)],
            "sets": [_set_report(judged) for judged in self._judged],
        }

    def _judge_report(self, place: int, seat: Seat) -> dict[str, Any]:
        spending = seat.spending
        return {
            "settings": seat.judge.model_dump(mode="json", by_alias=True, exclude_none=True),
            "requests": seat.requests, "requests_without_usable_answer": seat.failures, "replies_kept_from_before": seat.kept,
            "replies_not_readable": seat.unreadable, "input_tokens": spending.input_tokens, "output_tokens": spending.output_tokens,
            "money": None if spending.money is None else str(spending.money), "spending_limit_reached": spending.reached,
            "down": seat.down or None,
            "missing": missing_reasons([verdicts for judged in self._judged for verdicts in judged.found[place]]),
        }  # fmt: skip


def _means(verdicts: Sequence[Sequence[Verdict]], points: float) -> dict[str, float]:
    """Scores of an answer: for each judge the mean over its repeats, then the mean over the judges; nothing where one has none."""
    by_judge = [_judge_means(repeats) for repeats in verdicts]
    if not all(by_judge):
        return {}
    means = {name: fmean(scores[name] for scores in by_judge) for name in NAMES}
    won = {"points": points, "points_won": points * means["accuracy"] / HIGHEST} if points else {}
    return {**won, **means, MEAN: fmean(means[name] for name in NAMES if name != HARMLESSNESS), MEAN_OF_FIVE: fmean(means.values())}


def _judge_means(repeats: Sequence[Verdict]) -> dict[str, float]:
    scores = [verdict.scores for verdict in repeats if verdict.scores is not None]
    return {name: fmean(getattr(one, name) for one in scores) for name in NAMES} if scores else {}


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {"missing": verdict.missing} if verdict.scores is None else verdict.scores.model_dump()


def _results(judged: _Judged, harness: str) -> list[TaskResult]:
    """The whole set, then its categories in alphabetical order."""
    name, language = judged.questions.name, judged.questions.language
    missing = sum(MEAN not in item for item in judged.items)
    aggregates = {"missing": (float(missing), False), "empty_answers": (float(judged.answers.empty), False)}
    aggregates |= {
        f"alpha.{score}": (one.ordinal_alpha, True) for score, one in _agreement_of_judges(judged).items() if one.ordinal_alpha is not None
    }
    scored = missing < len(judged.items)
    exam = (SHARE_OF_POINTS,) if any("points" in item for item in judged.items) else ()
    whole = TaskResult(
        suite=judged.questions.suite, task=name, language=language, harness=harness, metrics=(*exam, *METRICS) if scored else (),
        items=judged.items, aggregates=aggregates, group=name, notes=_notes(judged, missing),
    )  # fmt: skip
    return [whole, *_by_category(whole)]


def _notes(judged: _Judged, missing: int) -> list[str]:
    """What is odd about questions and answers, and why scores are missing, each judge's first reason."""
    repeated, count = judged.questions.repeated, len(judged.items)
    reasons = [next(iter(missing_reasons(verdicts)), "") for verdicts in judged.found]
    why = "; ".join(dict.fromkeys(filter(None, reasons)))
    counts = {f"without scores: {why}": missing, "with an empty answer": judged.answers.empty, "stand there twice": repeated}
    return [f"{number} of {count} questions {what}" for what, number in counts.items() if number]


def _by_category(whole: TaskResult) -> list[TaskResult]:
    categories = sorted({str(item["category"]) for item in whole.items} - {""})
    if len(categories) < 2:
        return []
    parts = {category: [item for item in whole.items if item["category"] == category] for category in categories}
    return [
        TaskResult(
            suite=whole.suite, task=f"{whole.task}/{category}", language=whole.language, harness=whole.harness,
            metrics=(*(metric for metric in whole.metrics if metric is SHARE_OF_POINTS), *CATEGORY_METRICS), items=items, detail=True,
            group=whole.task,
        )
        for category, items in parts.items()
        if any(MEAN in item for item in items)
    ]  # fmt: skip


def _agreement_of_judges(judged: _Judged) -> dict[str, Agreement]:
    """By score, of two judges; the mean over its repeats is what a judge says."""
    if len(judged.found) < 2:
        return {}
    means = [[_judge_means(repeats) for repeats in judge] for judge in judged.found]
    return {name: agreement([[scores.get(name) for scores in judge] for judge in means]) for name in NAMES}


def _agreement_of_repeats(verdicts: Sequence[Sequence[Verdict]]) -> dict[str, Agreement]:
    """By score, of one judge with itself."""
    repeats = len(verdicts[0]) if verdicts else 0
    rounds = [[answer[number].scores for answer in verdicts] for number in range(repeats)]
    return {name: agreement([[None if s is None else getattr(s, name) for s in one] for one in rounds]) for name in NAMES}


def _set_report(judged: _Judged) -> dict[str, Any]:
    repeated = any(len(answer) > 1 for judge in judged.found for answer in judge)
    return {
        "name": judged.questions.name, "language": judged.questions.language, "questions": len(judged.items),
        "questions_repeated": judged.questions.repeated, "questions_truncated": judged.answers.truncated,
        "answers_empty": judged.answers.empty, "answers_without_scores": sum(MEAN not in item for item in judged.items),
        "agreement_of_judges": {name: asdict(one) for name, one in _agreement_of_judges(judged).items()},
        "agreement_of_repeats": [
            {name: asdict(one) for name, one in _agreement_of_repeats(judge).items()} for judge in judged.found if repeated
        ],
    }  # fmt: skip


def _samples(judged: _Judged, baseline: Callable[[TaskResult], list[Item] | None]) -> list[dict[str, Any]]:
    """Answers beside those of the base model: the same questions in every evaluation, chosen by the hash of their text."""
    whole = TaskResult(
        suite=judged.questions.suite,
        task=judged.questions.name,
        language=judged.questions.language,
        harness="",
        metrics=(),
        items=judged.items,
    )
    base = {item["id"]: item for item in baseline(whole) or []}
    chosen = sorted(judged.items, key=lambda item: hashlib.sha256(str(item["question"]).encode()).digest())[:SAMPLES]
    return [
        _sample(judged.questions.name, item, base.get(item["id"]))
        for item in sorted(chosen, key=lambda item: int(item["id"].split("-")[0]))
    ]


def _sample(name: str, item: Item, base: Mapping[str, Any] | None) -> dict[str, Any]:
    shared = {key: item[key] for key in ("id", "category", "language", "question", "reference")}
    sides = {side: _side(one) for side, one in (("base", base), ("adapted", item)) if one is not None}
    return {"set": name, **shared, **(sides if base is not None else {"answer": sides["adapted"]})}


def _side(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": item["answer"], "scores": {name: item[name] for name in NAMES if name in item}}

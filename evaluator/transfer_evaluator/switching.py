"""The suites `code-switching` and `language-identity`: whether a model answers in the language it is asked in.

The same 20 everyday questions in each of 15 languages (`prompts/`), answered greedily: a rate like the 2 to 5 % of arXiv 2401.01055
depends on the temperature (arXiv 2406.20052), so it is fixed. `code-switching` asks in one language, the experiment's own,
`language-identity` in all of them. Measured on every answer, by `transfer_evaluator.language`:

- line_pass_rate: share of answers without a line in another language (LPR of arXiv 2406.20052);
- word_pass_rate: of those, the share without a word of another language (WPR); not where target and English share the script;
- code_switched: share of answers that are partly in the target language and partly in another ("share of samples" of arXiv 2401.01055);
- in_language: share of answers that are in the language they were asked in, as a whole;
- answered: share of answers long enough to judge. The others count in none of the rates above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transfer_api.spec import CODE_SWITCHING, LANGUAGE_IDENTITY
from transfer_evaluator.generation import Prompt, answer
from transfer_evaluator.language import ENGLISH, SCRIPTS, Findings, detector, examine
from transfer_evaluator.model import LoadedModel
from transfer_evaluator.questions import Question, questions
from transfer_evaluator.score import SEVERAL, Item, Metric, TaskResult
from transfer_evaluator.scorer import Begin, TokenScorer, silent

MAX_TOKENS = 128
"""Of an answer. Where the tokenizer has a token for each byte, as for Telugu, that is 40 characters."""
RATES = (
    Metric(name="line_pass_rate", numerator="line_pass"),
    Metric(name="word_pass_rate", numerator="word_pass"),
    Metric(name="code_switched", numerator="code_switched", higher_is_better=False),
    Metric(name="answered", numerator="answered", main=False),
)
IDENTITY = (Metric(name="in_language", numerator="in_language"),)
QUESTION = "question"
"""Item value that the same question has in every language."""


def is_ours(suite: str) -> bool:
    """Whether a suite is one of this module; `code-switching_hi` is code-switching in Hindi."""
    return suite == LANGUAGE_IDENTITY or (suite.startswith(f"{CODE_SWITCHING}_") and suite.removeprefix(f"{CODE_SWITCHING}_") in SCRIPTS)


def languages(suite: str) -> list[str]:
    """The languages that a suite asks in."""
    return list(SCRIPTS) if suite == LANGUAGE_IDENTITY else [suite.removeprefix(f"{CODE_SWITCHING}_")]


def score_suites(
    loaded: LoadedModel, suites: Sequence[str], limit: int | None, begin: Begin = silent, scorer: TokenScorer | None = None
) -> list[TaskResult]:
    """Asks every question of the suites once and measures the answers."""
    wanted = list(dict.fromkeys(language for suite in suites for language in languages(suite)))
    asked = [question for language in wanted for question in questions(language, limit)]
    prompts = [_prompt(loaded, question) for question in asked]
    found: dict[str, list[Item]] = {}
    for question, text in zip(asked, answer(loaded, prompts, begin(len(prompts)), scorer=scorer), strict=True):
        found.setdefault(question.language, []).append(measure(question, text))
    return [result for suite in suites for result in _results(suite, found)]


def _prompt(loaded: LoadedModel, question: Question) -> Prompt:
    """The question and a line break, cut from the left where it leaves no room; the answer is what comes after."""
    limit = min(MAX_TOKENS, loaded.positions // 2)
    tokens = loaded.tokenizer.encode(f"{question.text}\n")[-(loaded.positions - limit) :]
    return Prompt(tuple(tokens), limit, ())


def measure(question: Question, text: str) -> Item:
    """The item of an answer: prompt, answer, what it is in, where it leaves its language, and the values that the rates are made of."""
    findings = examine(text, question.text, question.language)
    item: Item = {
        "id": question.identity, QUESTION: question.number, "language": question.language, "prompt": question.text, "answer": text,
        "detected": findings.language, "answered": float(findings.lines > 0),
        "switches": [[span.start, span.end, span.language] for span in (*findings.foreign_lines, *findings.foreign_words)],
    }  # fmt: skip
    return item | _values(findings, question.language)


def _values(findings: Findings, language: str) -> dict[str, float]:
    if not findings.lines:
        return {}
    passed = not findings.foreign_lines
    values = {
        "line_pass": float(passed),
        "code_switched": float(findings.own and bool(findings.foreign_lines or findings.foreign_words)),
        "in_language": float(findings.language == language),
    }
    if passed and SCRIPTS[language] != SCRIPTS[ENGLISH]:
        values["word_pass"] = float(not findings.foreign_words)
    return values


def _results(suite: str, found: Mapping[str, Sequence[Item]]) -> list[TaskResult]:
    mine = {language: found[language] for language in languages(suite)}
    if suite != LANGUAGE_IDENTITY:
        return [_result(CODE_SWITCHING, suite, language, items, RATES) for language, items in mine.items()]
    together = [{**item, "id": f"{language}/{item['id']}"} for language, items in mine.items() for item in items]
    parts = [_result(suite, f"{suite}_{language}", language, items, IDENTITY, detail=True) for language, items in mine.items()]
    return [_result(suite, suite, SEVERAL, together, (*IDENTITY, RATES[-1]), cluster=QUESTION), *parts]


def _result(suite: str, task: str, language: str, items: Sequence[Item], metrics: Iterable[Metric], **values: Any) -> TaskResult:
    """A rate that no answer allows, such as of words where every line fails, is left out."""
    measured = [metric for metric in metrics if any(metric.numerator in item for item in items)]
    harness = f"transfer-operator, greedy generation, {MAX_TOKENS} tokens, {len(items)} prompts; {detector()}"
    return TaskResult(suite=suite, task=task, language=language, harness=harness, metrics=measured, items=items, unit="answer", **values)

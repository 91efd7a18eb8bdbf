"""tasks/: multiple-choice tasks of lm-evaluation-harness whose questions lie beside them.

- cldr_cloze_<language>, of the fifteen languages: which of four is the name of a thing.
- mmlu_dev_en, mmlu_dev_hi: the questions that lm-evaluation-harness carries as examples for MMLU. They are good as a test here
  because nothing here is trained on them; they are not MMLU's test set.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import yaml

from hack.inputs.corpus import Corpus
from hack.inputs.jsonl import write_lines
from hack.inputs.languages import LANGUAGES
from hack.inputs.names import Name, pair_names
from hack.inputs.pages import fraction
from transfer_api.errors import DataError

CLOZE_ITEMS = 200
SEED = 2401_01055
LETTERS = "ABCD"
_QUESTION = re.compile(
    r"(?P<question>.+?)\n\(A\)\s(?P<A>.+?)\s\(B\)\s(?P<B>.+?)\s\(C\)\s(?P<C>.+?)\s\(D\)\s(?P<D>.+?)\nA: .*\((?P<answer>[ABCD])\)", re.S
)
"""A question with four options on one line or on four; one in the package has five and is left out."""


def write_tasks(corpus: Corpus, folder: Path) -> dict[str, int]:
    """Writes task and question files and returns how many questions each has."""
    named = {language: pair_names(corpus.names, language if language != "en" else "id") for language in LANGUAGES}
    return {
        **{f"cldr_cloze_{language}": _write_cloze(folder, language, cloze(names, language)) for language, names in named.items()},
        "mmlu_dev_en": _write_letters(folder, "en", "Answer:", english_questions()),
        "mmlu_dev_hi": _write_letters(folder, "hi", "उत्तर:", hindi_questions()),
    }


def cloze(names: Sequence[Name], language: str) -> list[dict[str, Any]]:
    """Questions about held-out things: what is it called, with three other held-out things as wrong answers."""
    asked = sorted((name for name in names if name.held_out), key=lambda name: fraction(name.english, "cloze"))[:CLOZE_ITEMS]
    generator = random.Random(SEED)  # noqa: S311 - the same questions everywhere, not secrets
    items = []
    for name in asked:
        answers = [name, *generator.sample([other for other in asked if other != name], 3)]
        generator.shuffle(answers)
        items.append(
            {
                "query": LANGUAGES[language].prompt.format(name.english) or f"The emoji {name.emoji} is called",
                "choices": [answer.english if language == "en" else answer.other for answer in answers],
                "label": answers.index(name),
            }
        )
    return items


def english_questions() -> list[dict[str, Any]]:
    """MMLU's development questions in English, first one of each subject, then the second of each, and so on."""
    content = json.loads((_harness() / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json").read_text(encoding="utf-8"))
    return _by_turns([list(_parse(subject, text)) for subject, text in sorted(content.items())])


def _parse(subject: str, text: str) -> Iterator[dict[str, Any]]:
    for block in text.split("\n\nQ: ")[1:]:
        match = _QUESTION.search(block)
        if match is not None:
            choices = [match[letter].strip() for letter in LETTERS]
            yield {"subject": subject, "question": match["question"].strip(), "choices": choices, "answer": LETTERS.index(match["answer"])}


def hindi_questions() -> list[dict[str, Any]]:
    """The same in Hindi."""
    subjects = []
    for path in sorted((_harness() / "llama3" / "instruct" / "mmlu_hi").glob("mmlu_hi_*.yaml")):
        samples = _samples(path)
        subject = path.stem.removeprefix("mmlu_hi_")
        subjects.append([_hindi(subject, sample) for sample in samples])
    return _by_turns(subjects)


def _hindi(subject: str, sample: dict[str, Any]) -> dict[str, Any]:
    choices = [str(sample["input_choice_list"][letter]).strip() for letter in LETTERS]
    answer = LETTERS.index(sample["input_correct_responses"][0])
    return {"subject": subject, "question": str(sample["input_question"]).strip(), "choices": choices, "answer": answer}


class _Loader(yaml.SafeLoader):
    """Reads task files without running the functions they name."""


_Loader.add_constructor("!function", lambda loader, node: None)


def _samples(path: Path) -> list[dict[str, Any]]:
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    samples = content["fewshot_config"]["samples"]
    assert isinstance(samples, list)
    return samples


def _harness() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise DataError("lm-eval is not installed", next_step="Run `make setup` first")
    return Path(spec.origin).parent / "tasks"


def _by_turns(subjects: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """So that the first n questions cover as many subjects as they can."""
    return [question for question in chain.from_iterable(zip_longest(*subjects)) if question is not None]


def _write_cloze(folder: Path, language: str, items: list[dict[str, Any]]) -> int:
    texts = {"doc_to_text": "{{query}}", "doc_to_choice": "choices", "doc_to_target": "label"}
    return _write_task(folder, f"cldr_cloze_{language}", language, texts, items)


def _write_letters(folder: Path, language: str, answer: str, items: list[dict[str, Any]]) -> int:
    options = "".join(f"{letter}. {{{{choices[{place}]}}}}\n" for place, letter in enumerate(LETTERS))
    texts = {"doc_to_text": f"{{{{question.strip()}}}}\n{options}{answer}", "doc_to_choice": list(LETTERS), "doc_to_target": "answer"}
    return _write_task(folder, f"mmlu_dev_{language}", language, texts, items)


def _write_task(folder: Path, name: str, language: str, texts: dict[str, Any], items: list[dict[str, Any]]) -> int:
    metrics = ["acc", "acc_norm"] if name.startswith("cldr") else ["acc"]
    task = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}}, "test_split": "test",
        "output_type": "multiple_choice", **texts,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        "metadata": {"version": 1, "language": language},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return write_lines(folder / f"{name}.jsonl", items)

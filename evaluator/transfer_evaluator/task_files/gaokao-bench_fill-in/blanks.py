"""Blanks of GAOKAO-Bench as the harness wants them: one item for each blank, and the rules by which an answer is the right one.

The files have one text for the answers to all blanks of a question, each in the manner of its year: by lines, by numbers, with remarks. A
question becomes as many items as its answer has parts, which share the passage: intervals then resample whole questions. An answer
counts where it is the same when written alike; an answer that explains itself does not.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import datasets

ASK = "以下是中国高考填空题，请直接写出答案。\n\n"
ALTERNATIVE = " / "
"""Between right answers of one blank."""
HAN = re.compile(r"[\u3400-\u9fff]+")
HEADING = re.compile(r"【[^】]*】[：:]?")
NUMBER = re.compile(r"\b\d{2}\s*[．.、]")
"""Of a blank in a text with blanks from 41 or 61 on."""


def formulas(rows: datasets.Dataset) -> datasets.Dataset:
    """Questions of mathematics, with one blank each."""
    return _items(rows, lambda answer: [re.split(r"\\#\s*\\#|或", re.sub(r"(?s)[(（]满足.*", "", answer))])


def verses(rows: datasets.Dataset) -> datasets.Dataset:
    """Lines of famous texts: every run of Chinese characters is one."""

    def parts(answer: str) -> list[list[str]]:
        plain = HEADING.sub("", answer.replace("\n", "").removeprefix("答案为："))
        plain = re.sub(r"[(（][^)）]*[)）]", " ", plain)  # numbers, and what the line was to be chosen for
        return [[verse] for verse in HAN.findall(re.sub("[《》“”]", "", plain))]

    return _items(rows, parts)


def words(rows: datasets.Dataset) -> datasets.Dataset:
    """Words of an English text, some of which have other right forms."""

    def parts(answer: str) -> list[list[str]]:
        lines = [line for part in NUMBER.split(HEADING.sub("\n", answer)) for line in part.split("\n")]
        found = [re.split(r"[，,;；。（\u3400-\u9fff]", line)[0].strip() for line in lines]
        return [word.split("/") for word in found if word]

    return _items(rows, parts)


def _items(rows: datasets.Dataset, parts: Callable[[str], list[list[str]]]) -> datasets.Dataset:
    return datasets.Dataset.from_list([item for row in rows for item in _of_question(row, parts(row["answer"]))])


def _of_question(row: Mapping[str, Any], blanks: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    question = row["question"].strip()
    if not blanks:
        raise ValueError(f"question {row.get('index')} has no answer that can be read")
    for number, right in enumerate(blanks, start=1):
        which = f"第 {number} 空（共 {len(blanks)} 空）的" if len(blanks) > 1 else ""
        target = ALTERNATIVE.join(one.strip() for one in right if one.strip())
        yield {"prompt": f"{ASK}{question}\n{which}答案：", "target": target, "passage": question}


def same_formula(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a formula is one of the right ones, or a number of the same value."""
    return _same(document, results, formula)


def same_verse(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the Chinese characters are the right ones."""
    return _same(document, results, lambda text: "".join(HAN.findall(text)))


def same_word(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the words are the right ones, whatever their case and the signs around them."""
    return _same(document, results, lambda text: " ".join(re.findall(r"[a-z'-]+", text.casefold())))


def _same(document: Mapping[str, Any], results: Sequence[str], alike: Callable[[str], object]) -> dict[str, float]:
    given = alike(results[0])
    return {"exact_match": float(given in {alike(one) for one in document["target"].split(ALTERNATIVE)} - {""})}


def formula(text: str) -> str | Fraction:
    """A formula as it is compared: LaTeX without what is for the eye, fractions by a stroke, numbers by their value."""
    plain = unicodedata.normalize("NFKC", text)
    for sign, name in (("√", r"\sqrt"), ("π", r"\pi"), ("°", r"^\circ"), ("−", "-"), (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac")):
        plain = plain.replace(sign, name)
    plain = re.sub(r"\\(?:left|right|mathrm|text|quad|[,;! ])|[\s$~]", "", plain)
    plain = re.sub(r"\\frac\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", r"\1/\2", plain)
    plain = re.sub(r"[{}]", "", plain).strip(".;,。")
    with contextlib.suppress(ValueError, ZeroDivisionError):
        return Fraction(plain)
    return plain

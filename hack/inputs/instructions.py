"""Questions and answers.

- instructions/id.jsonl: translations of the same paragraph in two languages, and words.
- instructions/names-<language>.jsonl: words in each of the thirteen languages.

From pages and names that are trained on only: nothing here stands in a held-out text or a cloze question.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hack.inputs.corpus import Corpus
from hack.inputs.jsonl import write_lines
from hack.inputs.language import is_prose
from hack.inputs.languages import LANGUAGES, TAUGHT
from hack.inputs.names import pair_names
from hack.inputs.pages import Page, fraction

LONGEST = 280
"""Characters of a paragraph: question and answer then fit a row of 256 tokens."""
PARALLEL = ("installation-guide-amd64", "gnome-user-docs")


def write_instructions(corpus: Corpus, folder: Path) -> dict[str, int]:
    """Writes the pairs, mixed by hash, and returns how many there are of each kind."""
    translations = list({pair["input"]: pair for package in PARALLEL for pair in _translations(corpus, package)}.values())
    words = [
        {"instruction": f'Apa kata bahasa Indonesia untuk "{name.english}"?', "input": "", "output": name.other, "source": "CLDR"}
        for name in pair_names(corpus.names, "id")
        if not name.held_out
    ]
    write_lines(folder / "id.jsonl", sorted(translations + words, key=lambda pair: fraction(pair["instruction"] + pair["input"])))
    named = {f"names-{language}": write_lines(folder / f"names-{language}.jsonl", _names(corpus, language)) for language in TAUGHT}
    return {"translations": len(translations), "words": len(words), **named}


def _names(corpus: Corpus, language: str) -> list[dict[str, str]]:
    prompt = LANGUAGES[language].prompt
    taught = (name for name in pair_names(corpus.names, language) if not name.held_out)
    pairs = [{"instruction": prompt.format(name.english), "input": "", "output": name.other, "source": "CLDR"} for name in taught]
    return sorted(pairs, key=lambda pair: fraction(pair["instruction"]))


def _translations(corpus: Corpus, package: str) -> Iterator[dict[str, str]]:
    english = {page.name: page for page in corpus.of(package, "en")}
    for page in corpus.of(package, "id"):
        if page.held_out or page.name not in english:
            continue
        for source, target in aligned(english[page.name], page):
            into_indonesian = fraction(source) < 0.5  # each pair once, half of them in each direction
            yield {
                "instruction": f"Terjemahkan ke dalam bahasa {'Indonesia' if into_indonesian else 'Inggris'}.",
                "input": source if into_indonesian else target,
                "output": target if into_indonesian else source,
                "source": page.source,
            }


def aligned(english: Page, other: Page) -> list[tuple[str, str]]:
    """Paragraphs that say the same: same place in pages of as many paragraphs, both translated, not long, of like length."""
    if len(english.paragraphs) != len(other.paragraphs):
        return []
    return [
        (source, target)
        for source, target in zip(english.paragraphs, other.paragraphs, strict=True)
        if is_prose(source, "en")
        and is_prose(target, other.language)
        and max(len(source), len(target)) <= LONGEST
        and 0.5 < len(source) / len(target) < 2
    ]

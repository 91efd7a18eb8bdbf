"""Documents as pages of paragraphs, and their split into what is trained on and what is held out.

A page is held out or not by the hash of its package and name, which is the same in every language: the Indonesian page that
a model is scored on was never seen in English either, nor in an instruction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hack.inputs.language import is_prose, words

HELD_OUT_OF_TEN = 1
PASSAGE_BYTES = 300
"""A held-out item has at least this many, where its page has: enough context that its first words do not decide its score, and
short enough that a few thousand bytes give the items that an interval needs."""
NGRAM = 13


@dataclass(frozen=True)
class Page:
    """One file of a document in one language."""

    package: str
    version: str
    name: str
    """The same in every language."""
    language: str
    license: str
    paragraphs: tuple[str, ...]
    """All of them, also those that were not translated."""

    @property
    def held_out(self) -> bool:
        """Whether nothing of this page may be trained on."""
        return fraction(f"{self.package}/{self.name}") < HELD_OUT_OF_TEN / 10

    @property
    def source(self) -> str:
        """Where it is from, for people."""
        return f"{self.package} {self.version}, {self.name} ({self.language})"


@dataclass(frozen=True)
class Passage:
    """A line of a text file."""

    text: str
    page: Page

    def as_json(self) -> dict[str, str]:
        """The object that is written."""
        return {"text": self.text, "language": self.page.language, "source": self.page.source, "license": self.page.license}


@dataclass
class Seen:
    """Paragraphs and n-grams that were trained on."""

    paragraphs: set[str] = field(default_factory=set)
    ngrams: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, text: str) -> None:
        """Remembers the n-grams of a text."""
        self.ngrams.update(ngrams(text))

    def overlaps(self, text: str) -> bool:
        """Whether a text shares an n-gram with what was trained on."""
        return any(gram in self.ngrams for gram in ngrams(text))


def fraction(name: str, salt: str = "transfer-operator") -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:6], "big") / 2**48


def ngrams(text: str, length: int = NGRAM) -> Iterator[tuple[str, ...]]:
    """All runs of `length` words."""
    units = words(text)
    return (tuple(units[start : start + length]) for start in range(len(units) - length + 1))


def documents(pages: Iterable[Page], seen: Seen) -> Iterator[Passage]:
    """One document a page: its prose paragraphs, each paragraph once in all documents."""
    for page in pages:
        fresh = [text for text in page.paragraphs if is_prose(text, page.language) and text not in seen.paragraphs]
        fresh = list(dict.fromkeys(fresh))
        seen.paragraphs.update(fresh)
        if fresh:
            text = "\n".join(fresh)
            seen.add(text)
            yield Passage(text, page)


def passages(page: Page) -> list[Passage]:
    """Runs of consecutive prose paragraphs of at least `PASSAGE_BYTES`; a short end joins the run before it."""
    runs: list[str] = []
    for text in dict.fromkeys(text for text in page.paragraphs if is_prose(text, page.language)):
        if runs and _is_short(runs[-1]):
            runs[-1] += f"\n{text}"
        else:
            runs.append(text)
    if len(runs) > 1 and _is_short(runs[-1]):
        end = runs.pop()
        runs[-1] += f"\n{end}"
    return [Passage(run, page) for run in runs]


def _is_short(text: str) -> bool:
    return len(text.encode()) < PASSAGE_BYTES


def held_out(pages: Iterable[Page], seen: Seen, budget: int) -> tuple[list[Passage], int]:
    """Passages that share no n-gram with what was trained on, in the order of their hashes, until `budget` bytes are full.

    Returns:
        The passages, and how many were dropped because they overlap.
    """
    found = {passage.text: passage for page in pages for passage in passages(page)}
    kept: list[Passage] = []
    dropped = used = 0
    for text, passage in sorted(found.items(), key=lambda item: fraction(item[0])):
        length = len(text.encode())
        if used + length > budget:
            continue
        if seen.overlaps(text):
            dropped += 1
            continue
        kept.append(passage)
        used += length
    return kept, dropped

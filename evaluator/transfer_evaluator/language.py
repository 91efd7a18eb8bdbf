"""Which language a text is in, and where it leaves it: pure functions over script runs and py3langid.

The script decides first: of the 15 languages eight have one of their own. py3langid, limited to the languages that use the
script, decides between the others (Latin: en id sw vi; Devanagari: hi mr ne; Arabic: ar ur).

Where an answer leaves its language is a span: a word in another script, a line in another language, or, where target and
English share the script, a stretch of five words that py3langid takes for English. Names, acronyms, addresses and code are no switch:
of Latin words among another script only those count that are in lower case and longer than three letters, as in the word list of the
Language Confusion Benchmark (arXiv 2406.20052), whose line and word rates `transfer_evaluator.switching` computes from this.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

ENGLISH = "en"
SCRIPTS = {
    "ar": "Arabic", "bn": "Bengali", "en": "Latin", "gu": "Gujarati", "hi": "Devanagari", "id": "Latin", "ml": "Malayalam",
    "mr": "Devanagari", "ne": "Devanagari", "sw": "Latin", "ta": "Tamil", "te": "Telugu", "ur": "Arabic", "vi": "Latin", "zh": "Han",
}  # fmt: skip
"""The script of each language: English, Chinese and the 13 of arXiv 2401.01055."""
OTHER_SCRIPTS = (
    "Cyrillic", "Greek", "Hebrew", "Hiragana", "Katakana", "Hangul", "Thai", "Gurmukhi", "Kannada", "Oriya", "Sinhala", "Georgian",
    "Armenian", "Ethiopic", "Khmer", "Lao", "Myanmar", "Tibetan",
)  # fmt: skip
NONE = "none"
"""What a text without enough letters is in."""
LEAST_WORDS = 5
"""A shorter line is not judged, as in the benchmark."""
LEAST_HAN = 8
"""Han characters that are about five words, of 1.6 characters each."""
LEAST_LATIN = 4
WINDOW = 5
"""Words that are long enough for py3langid."""
SURE = 0.95
"""Least probability of English, against the target, of a window that is a switch. In the declaration of human rights none of 4,953
windows of its translations into id, sw and vi reaches it, and 4,329 of 4,350 English ones do."""

_SCRIPT = {name: regex.compile(rf"\p{{Script={name}}}") for name in (*dict.fromkeys(SCRIPTS.values()), *OTHER_SCRIPTS)}
_WORD = regex.compile(r"\p{L}[\p{L}\p{M}\u200c\u200d'’]*")
_NO_PROSE = regex.compile(r"https?://\S+|www\.\S+|\S+@\S+|`[^`]*`|\S*[\\/_<>{}=]\S*|\S*\p{L}\S*\d\S*|\S*\d\S*\p{L}\S*|\p{L}+\.\p{L}[\w.]*")


@dataclass(frozen=True)
class Word:
    """A word in one script; a string of Han characters is one."""

    text: str
    script: str
    start: int
    """Place of its first character in the text."""

    @property
    def end(self) -> int:
        """Place after its last character."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Span:
    """A stretch of a text in another language."""

    start: int
    end: int
    language: str
    """A code, or the name of a script that none of the 15 languages uses."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an answer is in."""

    language: str
    """Of the answer as a whole; `none` where it is too short to tell."""
    lines: int
    """Lines that were long enough to judge."""
    foreign_lines: Sequence[Span]
    foreign_words: Sequence[Span]
    own: bool
    """Whether any of it is in the language that was expected."""


def detector() -> str:
    """Name and version, to be stated with every figure."""
    return f"script runs, then py3langid {importlib.metadata.version('py3langid')} among {' '.join(SCRIPTS)}"


def words(text: str) -> list[Word]:
    """The words of a text with their scripts; addresses, code and what has digits in it left out."""
    prose = _NO_PROSE.sub(lambda found: " " * len(found[0]), text)
    return [word for found in _WORD.finditer(prose) for word in _by_script(found[0], found.start())]


def _by_script(text: str, start: int) -> Iterator[Word]:
    """Cuts a word where the script changes: Chinese needs no space before English."""
    begin, script = 0, _script(text[0])
    for place, character in enumerate(text):
        if not character.isalpha():  # a mark belongs to the letter before it
            continue
        if (other := _script(character)) != script:
            yield Word(text[begin:place], script, start + begin)
            begin, script = place, other
    yield Word(text[begin:], script, start + begin)


@functools.lru_cache(maxsize=4096)
def _script(character: str) -> str:
    return next((name for name, pattern in _SCRIPT.items() if pattern.match(character)), "another script")


def identify(text: str) -> str:
    """The language of a text; the name of its script where none of the 15 uses it, `none` where the text is too short."""
    found = words(text)
    return _language(text, found) if _long_enough(found) else NONE


def _language(text: str, found: Sequence[Word]) -> str:
    letters: Counter[str] = Counter()
    for word in found:
        letters[word.script] += len(word.text)
    script = letters.most_common(1)[0][0]
    users = tuple(code for code, used in SCRIPTS.items() if used == script)
    if len(users) < 2:
        return users[0] if users else script
    # Words of other scripts say nothing about which of these languages it is.
    return _classify(" ".join(word.text for word in found if word.script == script), users)[0]


def _long_enough(found: Sequence[Word]) -> bool:
    han = sum(len(word.text) for word in found if word.script == "Han")
    return sum(word.script != "Han" for word in found) + han * LEAST_WORDS / LEAST_HAN >= LEAST_WORDS


def _classify(text: str, languages: tuple[str, ...]) -> tuple[str, float]:
    language, probability = _identifier(languages).classify(text.lower())
    return str(language), float(probability)


@functools.cache
def _identifier(languages: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(languages)
    return identifier


def confusion_of(items: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How many answers are in which language (`detected`), by the language they were asked in; both in the order of `SCRIPTS`."""
    counts: dict[str, Counter[str]] = {}
    for item in items:
        counts.setdefault(str(item["language"]), Counter())[str(item["detected"])] += 1
    return {language: dict(sorted(row.items(), key=_place)) for language, row in sorted(counts.items(), key=_place)}


def _place(pair: tuple[str, Any]) -> tuple[int, str]:
    """Languages in the order of `SCRIPTS`, then what is none of them."""
    order = (*SCRIPTS, NONE)
    return order.index(pair[0]) if pair[0] in order else len(order), pair[0]


def examine(answer: str, prompt: str, language: str) -> Findings:
    """Finds the lines and words of an answer that are not in the language expected of it.

    Args:
        answer: what a model wrote.
        prompt: what it was asked; words that stand in it may be said again.
        language: one of `SCRIPTS`.
    """
    lines, foreign_lines, foreign_words, own = 0, [], [], False
    given = {word.text.lower() for word in words(prompt)}
    for start, line in _lines(answer):
        found = words(line)
        if not _long_enough(found):
            continue
        lines += 1
        spoken = _language(line, found)
        own = own or spoken == language
        if spoken != language:
            foreign_lines.append(Span(start, start + len(line), spoken))
        foreign_words += [Span(start + span.start, start + span.end, span.language) for span in _switches(line, found, given, language)]
        own = own or (spoken == ENGLISH and _has_own_window(line, found, language))
    return Findings(language=identify(answer), lines=lines, foreign_lines=tuple(foreign_lines), foreign_words=tuple(foreign_words), own=own)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line with the place where it begins."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _switches(line: str, found: Sequence[Word], given: set[str], language: str) -> list[Span]:
    script = SCRIPTS[language]
    spans = []
    for other, run in itertools.groupby(found, key=lambda word: word.script):
        counted = [word for word in run if other != script and _counts(word) and word.text.lower() not in given]
        if counted:  # short words between them are of the same language
            spans.append(Span(counted[0].start, counted[-1].end, _user(other)))
    if script == SCRIPTS[ENGLISH] and language != ENGLISH:
        spans += _join(_windows(line, found, language, ENGLISH))
    return sorted(spans, key=lambda span: span.start)


def _counts(word: Word) -> bool:
    """Whether a word in another script is a word of another language, rather than a name, an acronym or a letter of a formula."""
    if word.script == SCRIPTS[ENGLISH]:
        return word.text.islower() and len(word.text) >= LEAST_LATIN
    return word.script == "Han" or len(word.text) > 1


def _user(script: str) -> str:
    """The language of a script; English for Latin: what a model falls back to."""
    users = [code for code, used in SCRIPTS.items() if used == script]
    return ENGLISH if ENGLISH in users else users[0] if len(users) == 1 else script


def _windows(line: str, found: Sequence[Word], language: str, wanted: str) -> list[Span]:
    """Stretches of words that are `wanted` rather than the other of the target and English."""
    pair = tuple(sorted((language, ENGLISH)))
    spans = []
    own = [word for word in found if word.script == SCRIPTS[language]]
    for first in range(max(0, len(own) - WINDOW + 1)):
        window = own[first : first + WINDOW]
        text = line[window[0].start : window[-1].end]
        spoken, probability = _classify(text, pair)
        if spoken == wanted and probability >= SURE:
            spans.append(Span(window[0].start, window[-1].end, wanted))
    return spans


def _has_own_window(line: str, found: Sequence[Word], language: str) -> bool:
    return language != ENGLISH and SCRIPTS[language] == SCRIPTS[ENGLISH] and bool(_windows(line, found, language, language))


def _join(windows: Sequence[Span]) -> list[Span]:
    """Makes one span of windows that overlap."""
    joined: list[Span] = []
    for window in windows:
        if joined and window.start < joined[-1].end:
            joined[-1] = Span(joined[-1].start, window.end, window.language)
        else:
            joined.append(window)
    return joined

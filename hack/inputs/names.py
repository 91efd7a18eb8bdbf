"""Names of things in English and another language (CLDR's names of emoji), split between training and testing by hash."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hack.inputs.language import is_letter
from hack.inputs.pages import fraction

TEST_SHARE = 0.4
LONGEST_WORDS = 3


@dataclass(frozen=True)
class Name:
    """One thing: 🐘, elephant, gajah."""

    emoji: str
    english: str
    other: str
    """In the other language."""

    @property
    def held_out(self) -> bool:
        """Whether it is asked in a test, and so never taught: the same things in every language."""
        return fraction(self.english, "names") < TEST_SHARE


def pair_names(names: dict[str, dict[str, str]], language: str) -> list[Name]:
    """Things with a plain and different name in English and another language; of things with the same name only the first."""
    found: list[Name] = []
    taken: set[str] = set()
    for emoji, english in sorted(names["en"].items()):
        other = names[language].get(emoji, "")
        plain = is_plain(english) and is_plain(other) and english.lower() != other.lower()
        if not plain or english in taken or other in taken:
            continue
        taken |= {english, other}
        found.append(Name(emoji, english, other))
    return found


def is_plain(name: str) -> bool:
    """One to three words of letters only: no signs, flags, clock times or explanations."""
    words = re.split("[ -]", name)
    return len(words) <= LONGEST_WORDS and all(word and word[0].isalpha() and all(map(is_letter, word)) for word in words)

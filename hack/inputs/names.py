"""Names of things in Indonesian and English (CLDR's names of emoji), split between training and testing by hash."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hack.inputs.pages import fraction

TEST_SHARE = 0.4
LONGEST_WORDS = 3


@dataclass(frozen=True)
class Name:
    """One thing: 🐘, elephant, gajah."""

    emoji: str
    english: str
    indonesian: str

    @property
    def held_out(self) -> bool:
        """Whether it is asked in a test and so never taught."""
        return fraction(self.english, "names") < TEST_SHARE


def pair_names(names: dict[str, dict[str, str]]) -> list[Name]:
    """Things with a plain and different name in both languages; of things with the same name only the first."""
    found: list[Name] = []
    taken: set[str] = set()
    for emoji, english in sorted(names["en"].items()):
        indonesian = names["id"].get(emoji, "")
        plain = is_plain(english) and is_plain(indonesian) and english.lower() != indonesian.lower()
        if not plain or english in taken or indonesian in taken:
            continue
        taken |= {english, indonesian}
        found.append(Name(emoji, english, indonesian))
    return found


def is_plain(name: str) -> bool:
    """One to three words of letters only: no signs, flags, clock times or explanations."""
    return re.fullmatch(rf"[^\W\d_]+(?:[ -][^\W\d_]+){{0,{LONGEST_WORDS - 1}}}", name) is not None

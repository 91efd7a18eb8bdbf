"""The questions of the suites `code-switching` and `language-identity`: the same 20 everyday ones in each of 15 languages (`prompts/`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Question:
    """One prompt."""

    number: int
    """The same for the same question in every language."""
    language: str
    text: str

    @property
    def identity(self) -> str:
        """Place and content: an altered prompt is not taken for the old one."""
        return f"{self.number}-{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"


def questions(language: str, limit: int | None = None) -> list[Question]:
    """The prompts of a language, one for each line of its file."""
    text = (files("transfer_evaluator") / "prompts" / f"{language}.txt").read_text(encoding="utf-8")
    return [Question(number, language, line) for number, line in enumerate(text.splitlines()[:limit], start=1)]

"""Language codes."""

from __future__ import annotations

import re

LANGUAGE_PATTERN = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*$"
ENGLISH = "en"

ASKED_LANGUAGES = ("ar", "bn", "en", "gu", "hi", "id", "ml", "mr", "ne", "sw", "ta", "te", "ur", "vi", "zh")
"""What the suites code-switching and language-identity can tell apart: English, Chinese and the 13 languages of arXiv 2401.01055."""


def primary(code: str) -> str:
    """The language of a code without script and region: `zh` of `zh-Hans-CN`."""
    return code.split("-")[0].lower()


def check_language(code: str) -> str:
    """Returns a BCP 47 code as it was written.

    Raises:
        ValueError: malformed, or not in the IANA registry (`xx`, `indonesian`).
    """
    import langcodes  # 0.1 s, and only files with a language need it

    if len(code) > 35 or not re.match(LANGUAGE_PATTERN, code) or not langcodes.tag_is_valid(code):
        raise ValueError("is not a language code that exists; write a BCP 47 code such as id, zh-Hans or sw")
    return code

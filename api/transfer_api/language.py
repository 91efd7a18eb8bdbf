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
        ValueError: malformed, not in the IANA registry (`xx`, `indonesian`), or of three letters where the language has two (`eng`), which
            would be another language to whoever compares codes.
    """
    import langcodes  # 0.1 s, and only files with a language need it

    if len(code) > 35 or not re.match(LANGUAGE_PATTERN, code) or not langcodes.tag_is_valid(code):
        raise ValueError("is not a language code that exists; write a BCP 47 code such as id, zh-Hans or sw")
    if (short := _of_two_letters(primary(code))) is not None:
        raise ValueError(f"has three letters where BCP 47 has two; write {short}{code[3:]}")
    return code


def _of_two_letters(language: str) -> str | None:
    """`en` of `eng`, `de` of `deu` and `ger`; None for a language that has no two letters, and for `en` itself."""
    from langcodes.data_dicts import LANGUAGE_ALPHA3, LANGUAGE_ALPHA3_BIBLIOGRAPHIC

    if len(language) != 3:
        return None
    known = (*LANGUAGE_ALPHA3.items(), *LANGUAGE_ALPHA3_BIBLIOGRAPHIC.items())
    return next((short for short, long in known if long == language and len(short) == 2), None)

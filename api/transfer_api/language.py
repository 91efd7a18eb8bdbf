"""Language codes."""

from __future__ import annotations

LANGUAGE_PATTERN = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*$"


def check_language(code: str) -> str:
    """Returns a BCP 47 code as it was written.

    Raises:
        ValueError: malformed, or not in the IANA registry (`xx`, `indonesian`).
    """
    import langcodes  # 0.1 s, and only files with a language need it

    if len(code) > 35 or not langcodes.tag_is_valid(code):
        raise ValueError("is not a language code that exists; write a BCP 47 code such as id, zh-Hans or sw")
    return code

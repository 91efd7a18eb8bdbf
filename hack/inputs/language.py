"""Whether a paragraph is really in the language of its document: translated documents fall back to English.

Between Indonesian and English the commonest words decide, for Chinese the script does; no model is needed for two languages
that share no common words.
"""

from __future__ import annotations

import re

_INDONESIAN = """
yang dan di untuk dengan dari ini itu pada adalah dapat tidak akan atau ke jika anda oleh dalam sebagai bisa juga telah sudah harus ada
saat secara tersebut karena hanya lebih semua setelah seperti bila mereka kita kami para setiap orang maka agar tetapi namun lain perlu
"""
_ENGLISH = """
the of and to in is for that you with this be are on it as or if by an at from not can will your which have has was were they their its
but should when there all more may any these also then than everyone shall his no one
"""
COMMON = {"id": frozenset(_INDONESIAN.split()), "en": frozenset(_ENGLISH.split())}
LEAST_COMMON_WORDS = 0.12
"""Share of common words below which a paragraph is a list of names or commands."""
LEAST_HAN = 0.45
"""Share of Han characters among letters; Debian's Chinese is full of Latin names."""
LEAST_LETTERS = 0.6


def is_prose(text: str, language: str) -> bool:
    """Whether a paragraph is running text of a language (id, en or zh)."""
    letters = [character for character in text if character.isalpha()]
    if len(letters) < LEAST_LETTERS * len(text):
        return False
    if language == "zh":
        han = sum("\u4e00" <= character <= "\u9fff" for character in letters)
        return len(text) >= 12 and han >= LEAST_HAN * len(letters)
    found = re.findall(r"[a-z]+", text.lower())
    own = sum(word in COMMON[language] for word in found)
    other = max(sum(word in COMMON[name] for word in found) for name in COMMON if name != language)
    return len(text) >= 40 and own >= LEAST_COMMON_WORDS * len(found) and own > 2 * other


def words(text: str) -> list[str]:
    """Words in lower case, and each Han character by itself: the units of an n-gram."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+|\d+", text.lower())

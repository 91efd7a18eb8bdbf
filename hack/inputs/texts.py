"""texts/: training texts of Indonesian, English and Chinese, held-out texts of all fifteen languages, and no overlap between the two."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hack.inputs.corpus import Corpus
from hack.inputs.jsonl import write_lines
from hack.inputs.languages import LANGUAGES
from hack.inputs.pages import Page, Passage, Seen, documents, held_out

HELD_OUT_BYTES = 6_500
"""Of a book: scored in about 5 s on two cores, and enough for an interval."""

TRAINING = {
    "id-train": [("installation-guide-amd64", "id"), ("gnome-user-docs", "id")],
    "en-train": [("debian-handbook", "en")],
    "zh-train": [
        ("installation-guide-amd64", "zh"), ("debian-reference-zh-cn", "zh"), ("gnome-user-docs", "zh"), ("debian-faq-zh-cn", "zh"),
    ],
}  # fmt: skip
HELD_OUT = {
    "id-guide-heldout": ("installation-guide-amd64", "id"),
    "id-handbook": ("debian-handbook", "id"),
    "zh-guide-heldout": ("installation-guide-amd64", "zh"),
}
DECLARATIONS = {f"udhr-{language}": language for language in LANGUAGES}


def write_texts(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Writes the text files and returns what there is of each: documents, characters, and how many overlapped."""
    facts: dict[str, Any] = {}
    seen = Seen()
    for name, sources in TRAINING.items():
        pages = [page for package, language in sources for page in corpus.of(package, language) if not page.held_out]
        facts[name] = _write(folder / f"{name}.jsonl", documents(pages, seen), dropped=0)
    for name, (package, language) in HELD_OUT.items():
        kept, dropped = held_out(_untrained(corpus.of(package, language), name), seen, HELD_OUT_BYTES)
        facts[name] = _write(folder / f"{name}.jsonl", kept, dropped)
    for name, language in DECLARATIONS.items():
        kept, dropped = held_out(corpus.of("udhr", language), seen, budget=10**9)
        facts[name] = _write(folder / f"{name}.jsonl", kept, dropped)
    return facts


def _untrained(pages: list[Page], name: str) -> list[Page]:
    """All pages of a book that is not trained on in its language, else only those held out."""
    trained = {source for sources in TRAINING.values() for source in sources}
    return pages if HELD_OUT[name] not in trained else [page for page in pages if page.held_out]


def _write(path: Path, passages: Iterable[Passage], dropped: int) -> dict[str, int]:
    kept = list(passages)
    write_lines(path, (passage.as_json() for passage in kept))
    characters = sum(len(passage.text) for passage in kept)
    return {"documents": len(kept), "characters": characters, "dropped for overlap with training": dropped}

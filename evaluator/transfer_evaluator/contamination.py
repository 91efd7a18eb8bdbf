"""How much of the evaluation sets stands in the training texts: overlap of 13-grams.

An item counts as contaminated when any 13 consecutive words of it stand in the training rows (Brown et al., "Language Models
are Few-Shot Learners", 2020, appendix C). Words are runs of letters and digits without regard to case; in scripts that put no
spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character counts as one. An item of fewer than 13 words
cannot be judged and is counted apart.

What is searched are the rows that training reads, turned back into text: what filters and de-duplication dropped is not in them. A
word at the end of a block of rows may be cut in two and missed.

Letters: G = 13-grams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_api.errors import ArtifactError

GRAM = 13
FILE = "contamination.json"
_DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# The combining marks of Indic and Thai vowels are no letters to `\w`, and would cut words in two.
_WORD = re.compile(rf"[{_DENSE}]|(?:(?![{_DENSE}])[^\W_]|[\u0300-\u036f\u0900-\u0dff])+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_ROWS = 64  # decoded at once

UInt64s = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """Overlap of one task with the training rows."""

    suite: str
    task: str
    items: int
    """Items of at least 13 words."""
    contaminated: int
    """Those of them of which 13 consecutive words stand in the training rows."""
    short: int
    """Items of fewer words."""

    @property
    def share(self) -> float:
        """Contaminated items among those that can be judged; 0 where none can."""
        return self.contaminated / self.items if self.items else 0.0

    def plain(self) -> dict[str, Any]:
        """As `contamination.json` and results.json have it."""
        return {**asdict(self), "share": self.share}


def words(text: str) -> list[str]:
    """The words of a text, or its characters where a script has no spaces."""
    return _WORD.findall(text.casefold())


def grams(hashes: UInt64s) -> UInt64s:
    """Hash of each 13 consecutive words; uint64 [W] to uint64 [max(0, W - 12)]."""
    count = len(hashes) - GRAM + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    found = np.zeros(count, np.uint64)
    for place in range(GRAM):
        found = found * _BASE + hashes[place : place + count]
    return found


def hashed(text: str) -> UInt64s:
    """Hash of each word, the same within this process only; uint64 [W]."""
    return np.array([hash(word) for word in words(text)], np.int64).view(np.uint64)


def overlaps(tasks: Mapping[tuple[str, str], Sequence[str]], training: Iterator[str], beat: Callable[[], None]) -> list[Overlap]:
    """Overlap of each task.

    Args:
        tasks: texts of the items of each (suite, task).
        training: text of the training rows, in blocks that follow one another.
        beat: is called after each block.
    """
    items = {name: [grams(hashed(text)) for text in texts] for name, texts in tasks.items()}
    every = [item for found in items.values() for item in found]
    wanted_G = np.unique(np.concatenate(every)) if every else np.empty(0, np.uint64)
    seen = np.zeros(len(wanted_G), bool)
    before = np.empty(0, np.uint64)
    for block in training:
        if not len(wanted_G):
            break
        hashes = np.concatenate([before, hashed(block)])
        found = grams(hashes)
        places = np.minimum(np.searchsorted(wanted_G, found), len(wanted_G) - 1)
        seen[places[wanted_G[places] == found]] = True
        before = hashes[-(GRAM - 1) :]
        beat()
    return [_overlap(*name, found, wanted_G, seen) for name, found in items.items()]


def _overlap(suite: str, task: str, items: list[UInt64s], wanted: UInt64s, seen: npt.NDArray[np.bool_]) -> Overlap:
    judged = [item for item in items if len(item)]
    contaminated = sum(bool(seen[np.searchsorted(wanted, item)].any()) for item in judged)
    return Overlap(suite, task, len(judged), contaminated, len(items) - len(judged))


def training_text(folder: Path, tokenizer: Any) -> Iterator[str]:
    """Text of the rows of a data set (`transfer_trainer.store` says how they lie), block after block.

    Raises:
        ArtifactError: the index cannot be read.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        length, counts = int(index["sequence_length"]), [int(source["rows"]) for source in index["sources"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} has no readable rows: {error}", next_step="Remove the artifact to have it made again") from error
    for number, count in enumerate(counts):
        if not count:
            continue
        tokens_NT = np.memmap(folder / f"{number}.tokens", "<u4", mode="r", shape=(count, length))
        for start in range(0, count, _ROWS):
            yield tokenizer.decode(tokens_NT[start : start + _ROWS].ravel().tolist(), skip_special_tokens=False)


def document_text(document: Any) -> str:
    """All text of a question: the strings of its fields, whatever they are called."""
    match document:
        case str():
            return document
        case Mapping():
            return "\n".join(document_text(value) for value in document.values())
        case list() | tuple():
            return "\n".join(document_text(value) for value in document)
        case _:
            return ""

"""Texts to token numbers, several times as fast as asking the tokenizer for every word again.

Most words of a text were seen before. Where a tokenizer cannot join anything across the space before a word, the tokens of a text
are those of its words laid end to end, so each word is asked for once and then looked up. Which tokenizers are of that kind is
read off their definition (`words_stand_alone`); any other is asked for whole texts. Both ways give the same numbers.

Letters: L = tokens of a document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_trainer.store import TOKENS

PIECE_CHARACTERS = 1_000_000  # the tokenizer needs about 100 bytes of memory for each token of a batch
_KEPT_WORD = 32  # characters: longer ones are links and lines of scripts without spaces, which do not come back
_KEPT_WORDS = 500_000  # about 100 MB
# Only a space behind anything but white space: runs of spaces are tokens of their own.
_BORDER = re.compile(r" (?<=\S )")

_DIGITS = r"\p{N}{1,3}"
# Splits of Llama 3, Qwen 2 and their kind: nothing in them matches a space that is not its first character, but in front of white space.
_SPLITS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (_DIGITS, r"\p{N}")
}


class Tokeniser:
    """Turns documents into tokens; to be used by one thread.

    Args:
        backend: a `tokenizers.Tokenizer`.
        begin: tokens before each document.
        end: token after each document.
    """

    def __init__(self, backend: Any, begin: Sequence[int], end: int) -> None:
        self.end = end
        self._backend = backend
        self._begin = np.array(begin, TOKENS).tobytes()
        self._end = np.array([end], TOKENS).tobytes()
        self._by_words = words_stand_alone(backend)
        self._words: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The tokens of each document, uint32 [L]: begin, text, end."""
        pieces = [_pieces(text) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        encoded = iter(self._looked_up(flat) if self._by_words else self._asked(flat))
        return [np.frombuffer(b"".join([self._begin, *(next(encoded) for _ in parts), self._end]), TOKENS) for parts in pieces]

    def _asked(self, texts: list[str]) -> list[bytes]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, TOKENS).tobytes() for encoding in encodings]

    def _looked_up(self, texts: list[str]) -> list[bytes]:
        """Each text from its words. A first word has no space before it, so it is another word than the same one later on."""
        if len(self._words) > _KEPT_WORDS:
            self._words.clear()
        split = [_BORDER.split(text) for text in texts]
        missing = list({word for words in split for word in words[1:]} - self._words.keys())
        known = self._words
        known.update(zip(missing, self._asked([f" {word}" for word in missing]), strict=True))
        first = self._asked([words[0] for words in split])
        found = [b"".join([head, *map(known.__getitem__, words[1:])]) for head, words in zip(first, split, strict=True)]
        for word in missing:
            if len(word) > _KEPT_WORD:
                del known[word]
        return found


def words_stand_alone(backend: Any) -> bool:
    """Whether a tokenizer gives a text the tokens of its words, each taken with the space before it.

    True for byte-level BPE whose texts are split as GPT-2, Llama 3 or Qwen 2 split them, and without added tokens that reach over
    spaces. False is always safe.
    """
    definition = json.loads(backend.to_str())
    model, normalizer = definition["model"], definition.get("normalizer")
    added = definition.get("added_tokens") or []
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        and (normalizer is None or normalizer["type"] == "NFC")
        and definition.get("truncation") is None
        and definition.get("padding") is None
        and _splits_before_spaces(definition.get("pre_tokenizer"))
        and not any(token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]) for token in added)
    )


def _splits_before_spaces(splitter: dict[str, Any] | None) -> bool:
    match splitter:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return True
        case {"type": "Sequence", "pretokenizers": [*first, {"type": "ByteLevel", "add_prefix_space": False} as last]}:
            splits = [one for one in first if one["type"] != "Digits"]
            return all(_is_known_split(one) for one in splits) and (bool(splits) or last["use_regex"])
        case _:
            return False


def _is_known_split(splitter: dict[str, Any]) -> bool:
    return (
        splitter["type"] == "Split"
        and splitter["pattern"].get("Regex") in _SPLITS
        and splitter["behavior"] == "Isolated"
        and not splitter["invert"]
    )


def _pieces(text: str) -> list[str]:
    """A text in pieces of at most `PIECE_CHARACTERS`, parted before a space or line where there is one.

    A whole library in one document would need a hundred times its size in memory; one cut in a million characters moves at
    most a few token borders.
    """
    pieces, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        limit = start + PIECE_CHARACTERS
        cut = max(text.rfind("\n", start + 1, limit), text.rfind(" ", start + 1, limit))
        cut = cut if cut > start else limit
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]]

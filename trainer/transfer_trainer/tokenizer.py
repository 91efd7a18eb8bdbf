"""A base tokenizer taken apart, so that its merges can be continued.

Two kinds of BPE can be: in both, any text is a sequence of symbols that the vocabulary has.

    byte-level      GPT-2's, of Llama 3, Qwen, SmolLM: the symbols are the 256 bytes, written as printable characters
    byte fallback   SentencePiece's, of Llama 2, Mistral, Gemma: the symbols are characters, spaces are written ▁, and a character that
                    the vocabulary lacks is spelled in the 256 pieces <0x00> to <0xFF>

Byte pieces are never merged (their decoder would not know the result): a character that was spelled becomes a token of its own first.
"""

from __future__ import annotations

import enum
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_api.errors import ModelError
from transfer_trainer.merges import byte_of_character, to_bytes

SPACE = "▁"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
# What SentencePiece's trainer never merges across, by its defaults for Llama 2: scripts, digits, letters and signs.
_SPLIT = r"▁?\p{N}|▁?[\p{Han}\p{Hiragana}\p{Katakana}]+|▁?[[\p{L}\p{M}]&&[^\p{Han}\p{Hiragana}\p{Katakana}]]+|▁?[^\p{L}\p{M}\p{N}▁]+|▁+"


class Kind(enum.Enum):
    """How a tokenizer spells what it has no token for."""

    BYTE_LEVEL = "byte-level BPE"
    BYTE_FALLBACK = "BPE with byte fallback"


class BaseTokenizer:
    """The base tokenizer, taken apart.

    Raises:
        ModelError: it is of another kind, or lacks pieces that every text may need.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self.plain: dict[str, Any] = json.loads(self._backend.to_str())
        self.kind = _kind(self.plain)
        model = self.plain["model"]
        self.added = {token["content"]: token["id"] for token in self.plain["added_tokens"]}
        self.vocabulary: dict[str, int] = model["vocab"]
        self.merges: list[tuple[str, str]] = [_pair(merge) for merge in model["merges"]]
        self.size: int = max([*self.vocabulary.values(), *self.added.values()]) + 1
        """Ids from here on are free."""
        self._check_pieces()

    def _check_pieces(self) -> None:
        spelled = [f"<0x{byte:02X}>" for byte in range(256)] if self.kind is Kind.BYTE_FALLBACK else list(byte_of_character())
        if missing := [piece for piece in spelled if piece not in self.vocabulary]:
            raise ModelError(
                f"its tokenizer lacks {len(missing)} of the 256 byte pieces, among them {' '.join(missing[:3])}",
                field="spec.vocabulary", value=self.kind.value, allowed="a tokenizer with a piece for every byte",
                next_step="Use the tokenizer that belongs to the model, or leave spec.vocabulary out",
            )  # fmt: skip

    def words(self, text: str) -> list[str]:
        """The words of a text in the tokenizer's alphabet: no added token reaches from one into the next."""
        if self._backend.normalizer is not None:
            text = self._backend.normalizer.normalize_str(text)
        pre = self._backend.pre_tokenizer
        words = [word for word, _ in pre.pre_tokenize_str(text)] if pre is not None else [text]
        return words if self.kind is Kind.BYTE_LEVEL else [part for word in words for part, _ in _split().pre_tokenize_str(word)]

    def ids(self, string: str) -> list[int]:
        """The base tokens of a string in the tokenizer's alphabet."""
        return [token.id for token in self._backend.model.tokenize(string)]

    def model_with(self, tokens: Sequence[str], merges: Sequence[tuple[str, str]] = ()) -> Any:
        """The BPE model of the library with tokens of ids from `size` on and merges behind the base's."""
        from tokenizers import models

        model = self.plain["model"]
        settings = {name: model[name] for name in ("unk_token", "fuse_unk", "byte_fallback") if model.get(name) is not None}
        new = {string: self.size + number for number, string in enumerate(tokens)}
        return models.BPE(vocab={**self.vocabulary, **new}, merges=[*self.merges, *merges], **settings)

    def text_of(self, string: str) -> bytes | None:
        """The bytes of a string that may become a token; None for any that may not."""
        if self.kind is Kind.BYTE_LEVEL:
            return to_bytes(string)
        if SPACE in string[1:] or _BYTE_PIECE.search(string):
            return None
        return string.replace(SPACE, " ").encode()

    def spelled(self, word: str) -> list[str]:
        """The characters of a word that are spelled in bytes; none where all text is."""
        return [] if self.kind is Kind.BYTE_LEVEL else [character for character in word if character not in self.vocabulary]


@functools.cache
def _split() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")


def _kind(plain: Mapping[str, Any]) -> Kind:
    model = plain["model"]
    whole = not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
    if model["type"] == "BPE" and whole:
        if '"ByteLevel"' in json.dumps(plain["pre_tokenizer"]):
            return Kind.BYTE_LEVEL
        if model.get("byte_fallback"):
            return Kind.BYTE_FALLBACK
    raise ModelError(
        "its tokenizer cannot be extended", field="spec.vocabulary", value=model["type"],
        allowed="byte-level BPE, or BPE with byte fallback",
        next_step="Choose a model of the Llama, Mistral, Qwen, SmolLM or GPT-2 kind, or leave spec.vocabulary out",
    )  # fmt: skip


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge of tokenizer.json: two strings, or in older files one string with a space."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right

"""A base tokenizer taken apart, so that its vocabulary can be continued.

Three kinds can be: in all, any text is a sequence of symbols that the vocabulary has, or has a token for what it lacks.

    byte-level      GPT-2's, of Llama 3, Qwen, SmolLM: the symbols are the 256 bytes, written as printable characters
    byte fallback   SentencePiece's, of Llama 2, Mistral, Gemma: the symbols are characters, spaces are written ▁, and a character that
                    the vocabulary lacks is spelled in the 256 pieces <0x00> to <0xFF>
    Unigram         SentencePiece's other model, of XGLM, llm-jp, Sarashina: pieces with log-probabilities, the likeliest sequence of
                    which is taken; a character that the vocabulary lacks is spelled in bytes, or is the unknown token

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
_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
# What SentencePiece's trainer never merges across, by its defaults for Llama 2: scripts, digits, letters and signs.
_SPLIT = r"▁?\p{N}|▁?[\p{Han}\p{Hiragana}\p{Katakana}]+|▁?[[\p{L}\p{M}]&&[^\p{Han}\p{Hiragana}\p{Katakana}]]+|▁?[^\p{L}\p{M}\p{N}▁]+|▁+"


class Kind(enum.Enum):
    """How a tokenizer spells what it has no token for."""

    BYTE_LEVEL = "byte-level BPE"
    BYTE_FALLBACK = "BPE with byte fallback"
    UNIGRAM = "Unigram"


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
        self.scores: list[float] = []
        """Log-probability of each id of a Unigram vocabulary; else empty."""
        if self.kind is Kind.UNIGRAM:
            self.vocabulary = {piece: number for number, (piece, _) in enumerate(model["vocab"])}
            self.scores = [score for _, score in model["vocab"]]
        self.unknown: int | None = model["unk_id"] if self.kind is Kind.UNIGRAM else None
        """Token of characters that are not in a Unigram vocabulary; that of a BPE is never needed here."""
        self._unknown_piece = "" if self.unknown is None else model["vocab"][self.unknown][0]
        self.merges: list[tuple[str, str]] = [_pair(merge) for merge in model.get("merges", ())]
        self.size: int = max([*self.vocabulary.values(), *self.added.values()]) + 1
        """Ids from here on are free."""
        self._check_pieces()

    def _check_pieces(self) -> None:
        if self.kind is Kind.UNIGRAM:
            self._check_numbers()
        in_bytes = self.kind is Kind.BYTE_FALLBACK or self.plain["model"].get("byte_fallback")
        spelled = [f"<0x{byte:02X}>" for byte in range(256)] if in_bytes else []
        if self.kind is Kind.BYTE_LEVEL:
            spelled = list(byte_of_character())
        if missing := [piece for piece in spelled if piece not in self.vocabulary]:
            raise ModelError(
                f"its tokenizer lacks {len(missing)} of the 256 byte pieces, among them {' '.join(missing[:3])}",
                field="spec.vocabulary", value=self.kind.value, allowed="a tokenizer with a piece for every byte",
                next_step="Use the tokenizer that belongs to the model, or leave spec.vocabulary out",
            )  # fmt: skip

    def _check_numbers(self) -> None:
        """A Unigram vocabulary is a list whose places are the ids, so what follows it must be there without gaps."""
        behind = sorted(number for number in self.added.values() if number >= len(self.scores))
        if self.unknown is None or behind != list(range(len(self.scores), self.size)):
            problem = "has no token for unknown characters" if self.unknown is None else "leaves out ids behind its vocabulary"
            raise ModelError(
                f"its tokenizer {problem}", field="spec.vocabulary", value=self.kind.value,
                allowed="a Unigram tokenizer with an unknown token and ids without gaps",
                next_step="Use the tokenizer that belongs to the model, or leave spec.vocabulary out",
            )  # fmt: skip

    def words(self, text: str) -> list[str]:
        """The words of a text in the tokenizer's alphabet: no added token reaches from one into the next."""
        words = self._parted(text)
        match self.kind:
            case Kind.BYTE_LEVEL:
                return words
            case Kind.BYTE_FALLBACK:
                return [part for word in words for part, _ in _split().pre_tokenize_str(word)]
            case Kind.UNIGRAM:  # not parted by scripts: what is likeliest inside a part may not be so in the whole word
                return [part for word in words for part in _WORD.findall(word)]

    def decoded(self, text: str) -> str:
        """What a Unigram tokenizer's decoding gives back of a text that it knows every character of."""
        return str(self._backend.decoder.decode(self._parted(text)))

    def _parted(self, text: str) -> list[str]:
        if self._backend.normalizer is not None:
            text = self._backend.normalizer.normalize_str(text)
        pre = self._backend.pre_tokenizer
        return [word for word, _ in pre.pre_tokenize_str(text)] if pre is not None else [text]

    def ids(self, string: str) -> list[int]:
        """The base tokens of a string in the tokenizer's alphabet."""
        return [token.id for token in self._backend.model.tokenize(string)]

    def model_with(self, tokens: Sequence[str], merges: Sequence[tuple[str, str]] = (), scores: Sequence[float] = ()) -> Any:
        """The model of the library with tokens of ids from `size` on, and merges behind the base's or a score for each token."""
        from tokenizers import models

        model = self.plain["model"]
        if self.kind is Kind.UNIGRAM:
            fallback = bool(model.get("byte_fallback"))
            return models.Unigram(vocab=self.entries(tokens, scores), unk_id=self.unknown, byte_fallback=fallback)
        settings = {name: model[name] for name in ("unk_token", "fuse_unk", "byte_fallback") if model.get(name) is not None}
        new = {string: self.size + number for number, string in enumerate(tokens)}
        return models.BPE(vocab={**self.vocabulary, **new}, merges=[*self.merges, *merges], **settings)

    def entries(self, tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, float]]:
        """A Unigram vocabulary with tokens behind it. Special tokens that follow the base's get the lowest score: none is looked for."""
        behind = {number: content for content, number in self.added.items() if number >= len(self.scores)}
        known = [*map(tuple, self.plain["model"]["vocab"]), *((behind[number], min(self.scores)) for number in sorted(behind))]
        return [*known, *zip(tokens, scores, strict=True)]

    def text_of(self, string: str) -> bytes | None:
        """The bytes of a string that may become a token; None for any that may not."""
        if self.kind is Kind.BYTE_LEVEL:
            return to_bytes(string)
        if SPACE in string[1:] or _BYTE_PIECE.search(string):
            return None
        if self.kind is Kind.UNIGRAM and (self._unknown_piece in string or len(_split().pre_tokenize_str(string)) > 1):
            return None
        return string.replace(SPACE, " ").encode()

    def spelled(self, word: str) -> list[str]:
        """The characters of a word that are spelled in bytes or unknown; none where all text is."""
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
    if model["type"] == "Unigram":
        return Kind.UNIGRAM
    raise ModelError(
        "its tokenizer cannot be extended", field="spec.vocabulary", value=model["type"],
        allowed="byte-level BPE, BPE with byte fallback, or Unigram",
        next_step="Choose a model of the Llama, Mistral, Qwen, SmolLM, GPT-2 or XGLM kind, or leave spec.vocabulary out",
    )  # fmt: skip


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge of tokenizer.json: two strings, or in older files one string with a space."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right

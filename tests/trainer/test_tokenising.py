"""Words that are looked up give the numbers that the tokenizer gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.support.tiny import SENTENCES, tiny_tokenizer
from transfer_trainer import tokenising
from transfer_trainer.tokenising import Tokeniser, words_stand_alone

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(splitter: Any, normalizer: Any = None, special: tuple[str, ...] = ("<end>",)) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    texts = [*SENTENCES, "a  b\n\n  c\td  \n e's  123 4567 ,,  .\n\n\n", "   \n\n\n    \t\t  "]
    tokenizer.train_from_iterator(texts * 3, trainer)
    return tokenizer


def by_split(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
STANDING_ALONE = {
    "GPT-2": trained(GPT2),
    "Llama 3": trained(by_split(LLAMA3)),
    "Qwen 2": trained(by_split(LLAMA3.replace("{1,3}", "")), normalizers.NFC()),
    "digits apart": trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])),
}
texts = st.lists(st.text(st.sampled_from(" \n\t\r\u00a0\u2003\x1c\u0301aeèŔ'sD.,;-0123456789中文<end>"), max_size=60), max_size=5)


@pytest.mark.parametrize("kind", STANDING_ALONE)
def test_looking_words_up_gives_what_the_tokenizer_gives(kind: str) -> None:
    backend = STANDING_ALONE[kind]
    assert words_stand_alone(backend)
    tokeniser = Tokeniser(backend, [7], 0)

    @given(texts)
    def same(documents: list[str]) -> None:
        plain = [[7, *encoding.ids, 0] for encoding in backend.encode_batch(documents, add_special_tokens=False)]
        assert [array.tolist() for array in tokeniser.encode(documents)] == plain

    same()


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(trained(pre_tokenizers.ByteLevel(add_prefix_space=True)), id="a space is put before the text"),
        pytest.param(trained(pre_tokenizers.Metaspace()), id="SentencePiece-style"),
        pytest.param(trained(by_split(r"\p{L}+ \p{L}+")), id="a split that is not known"),
        pytest.param(trained(GPT2, normalizers.Strip()), id="a normalizer that looks at the ends of a text"),
        pytest.param(trained(GPT2, special=("<end>", "a b")), id="an added token with a space"),
        pytest.param(Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1})), id="not BPE"),
    ],
)
def test_other_tokenizers_are_asked_for_whole_texts(backend: Tokenizer) -> None:
    assert not words_stand_alone(backend)
    documents = ["a b  c", "a b"]
    plain = [[*encoding.ids, 0] for encoding in backend.encode_batch(documents, add_special_tokens=False)]
    assert [array.tolist() for array in Tokeniser(backend, [], 0).encode(documents)] == plain


def test_the_words_that_are_kept_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "_KEPT_WORDS", 3)
    tokeniser = Tokeniser(tiny_tokenizer().backend_tokenizer, [], 0)  # type: ignore[attr-defined]
    for number in range(5):
        tokeniser.encode([f"x a{number} b{number} {'long' * 20}"])
    assert len(tokeniser._words) <= 5
    assert not any("long" in word for word in tokeniser._words)


def test_a_huge_document_is_tokenised_in_pieces_that_join_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "PIECE_CHARACTERS", 10)
    for text in ("a b\nc " * 20, "x" * 95, "", "short"):
        pieces = tokenising._pieces(text)
        assert "".join(pieces) == text
        assert all(len(piece) <= 10 for piece in pieces)

"""Continued merges: what is learned is what encoding does."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny import tiny_tokenizer
from transfer_trainer.merges import MOST_TOKEN_BYTES, MergeLearner, chunks, is_sound, to_bytes
from transfer_trainer.tokenizer import BaseTokenizer

BASE = BaseTokenizer(tiny_tokenizer())
TEXTS = st.text(alphabet="abn 的一是🙂é", min_size=1, max_size=60)


def learner(texts: list[str]) -> MergeLearner:
    words = Counter(word for text in texts for word in BASE.words(text))
    return MergeLearner(
        BASE.vocabulary, BASE.merges, [(BASE.ids(word), count) for word, count in words.items()], BASE.size, frozenset(BASE.added)
    )


def extended(learned: Any) -> Any:
    """A tokenizer of the library with what was learned."""
    from tokenizers import models

    new = {string: BASE.size + number for number, string in enumerate(learned.tokens)}
    return models.BPE(vocab={**BASE.vocabulary, **new}, merges=[*BASE.merges, *learned.merges])


@given(texts=st.lists(TEXTS, min_size=1, max_size=8), tokens=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_learners_words_end_as_the_library_encodes_them_and_every_token_is_reached(texts: list[str], tokens: int) -> None:
    one = learner(texts)
    learned = one.learn(tokens)
    model = extended(learned)
    words = list(Counter(word for text in texts for word in BASE.words(text)))
    assert one._words == [[token.id for token in model.tokenize(word)] for word in words]
    for number, string in enumerate(learned.tokens):
        assert [token.id for token in model.tokenize(string)] == [BASE.size + number]


@given(texts=st.lists(TEXTS, min_size=1, max_size=8), tokens=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_counts_kept_along_the_way_equal_counts_made_anew(texts: list[str], tokens: int) -> None:
    one = learner(texts)
    one.learn(tokens)
    anew: Counter[tuple[int, int]] = Counter()
    for symbols, frequency in zip(one._words, one._frequency, strict=True):
        for pair in itertools.pairwise(symbols):
            anew[pair] += frequency
    assert {pair: count for pair, count in one._counts.items() if count} == dict(anew)


@given(texts=st.lists(TEXTS, min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_every_token_is_whole_characters_or_part_of_one(texts: list[str]) -> None:
    for string in learner(texts).learn(50).tokens:
        data = to_bytes(string)
        assert data is not None
        assert is_sound(data)
        assert len(data) <= MOST_TOKEN_BYTES


def test_the_most_frequent_pair_comes_first() -> None:
    learned = learner(["zq zq zq zq", "qz qz", "xq"]).learn(1)
    assert learned.tokens == ["zq"]


def test_the_same_corpus_gives_the_same_tokens_in_the_same_order() -> None:
    texts = ["人人生而自由", "人人平等", "自由平等 zq xz zq xz"]
    assert learner(texts).learn(12) == learner(texts).learn(12)


def test_a_base_token_that_no_merge_led_to_is_used_and_its_own_merges_go_first() -> None:
    from tokenizers import models

    vocabulary = {string: number for number, string in enumerate(["x", "y", "z", "w", "xy", "xyz"])}
    one = MergeLearner(vocabulary, [("xy", "z")], [([0, 1, 2, 3], 5), ([0, 1, 3], 2)], first_id=6)
    learned = one.learn(1)
    assert (learned.merges, learned.tokens) == ([("x", "y"), ("xyz", "w")], ["xyzw"])
    model = models.BPE(vocab={**vocabulary, "xyzw": 6}, merges=[("xy", "z"), *learned.merges])
    assert one._words == [[token.id for token in model.tokenize(word)] for word in ("xyzw", "xyw")]


def test_a_corpus_that_repeats_nothing_teaches_nothing() -> None:
    assert learner(["zqx"]).learn(5).tokens == []


@pytest.mark.parametrize(
    ("data", "sound"),
    [
        pytest.param("的".encode(), True, id="a character"),
        pytest.param("的是".encode(), True, id="two characters"),
        pytest.param("的".encode()[:2], True, id="the beginning of one"),
        pytest.param("的".encode()[1:], True, id="the end of one"),
        pytest.param("的是".encode()[2:], False, id="the end of one and the next"),
        pytest.param("的是".encode()[:4], False, id="one and the beginning of the next"),
        pytest.param(b"a" + "的".encode()[:1], False, id="a letter and the beginning of the next"),
    ],
)
def test_soundness(data: bytes, sound: bool) -> None:
    assert is_sound(data) is sound


@given(text=st.text(alphabet="a的🙂é", min_size=1, max_size=50), longest=st.integers(4, 12))
def test_long_words_are_cut_between_characters(text: str, longest: int) -> None:
    word = "".join(BASE.words(text))
    parts = chunks(word, longest)
    assert "".join(parts) == word
    assert all(len(part) <= longest and (to_bytes(part) or b"").decode() for part in parts)

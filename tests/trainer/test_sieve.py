"""What a sieve drops, and that it drops nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.support.experiment import sentences
from transfer_api.errors import SpecError
from transfer_api.spec import TextFilter
from transfer_trainer import sieve
from transfer_trainer.sieve import Sieve, nearly_repeated, repeated, repetition, signature

INDONESIAN = "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama. Mereka dikaruniai akal dan hati nurani."
ENGLISH = "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience."


@pytest.mark.parametrize(
    ("wanted", "text", "reason"),
    [
        pytest.param({}, "x", None, id="nothing asked for"),
        pytest.param({"min_characters": 3}, "ab", "dropped_short", id="too short"),
        pytest.param({"min_characters": 3}, "abc", None, id="just long enough"),
        pytest.param({"max_characters": 3}, "abcd", "dropped_long", id="too long"),
        pytest.param({"max_characters": 3}, "abc", None, id="just short enough"),
        pytest.param({"max_repetition": "0.5"}, "a" * 5000, "dropped_repetitive", id="one character again and again"),
        pytest.param({"max_repetition": "0.5"}, f"{INDONESIAN} " * 20, "dropped_repetitive", id="one sentence again and again"),
        pytest.param({"max_repetition": "0.5"}, INDONESIAN, None, id="prose"),
        pytest.param({"languages": ["id"]}, INDONESIAN, None, id="the language asked for"),
        pytest.param({"languages": ["id"]}, ENGLISH, "dropped_language", id="another language"),
        pytest.param({"languages": ["id", "en"]}, ENGLISH, None, id="the second of the languages asked for"),
        pytest.param({"languages": ["zh-Hant"]}, "人人生而自由，在尊嚴和權利上一律平等。", None, id="a language with its script"),
    ],
)
def test_a_document_is_dropped_for_a_reason(wanted: dict[str, object], text: str, reason: str | None) -> None:
    assert Sieve(TextFilter(**wanted), "f").reason(text) == reason  # type: ignore[arg-type]


def test_a_language_that_cannot_be_told_is_refused_with_those_that_can() -> None:
    with pytest.raises(SpecError, match=r"f\.languages") as caught:
        Sieve(TextFilter(languages=["tlh"]), "f")
    assert " id," in str(caught.value.allowed)


def test_repetition_is_that_of_a_window_so_that_long_prose_is_not_punished() -> None:
    prose = " ".join(sentences(1, 20))
    assert repetition("a" * 2000) > 0.98
    assert abs(repetition(prose * 30) - repetition(prose)) < 0.25
    assert repetition("short") == 0


def test_equal_documents_are_repeated_white_space_aside_and_the_first_stays() -> None:
    texts = ["b", "a  c", "b ", "a c", "A c", "b"]
    digests = np.frombuffer(b"".join(map(sieve.digest, texts)), sieve.DIGEST)
    assert repeated(digests).tolist() == [False, False, True, True, False, True]
    assert repeated(digests[:0]).tolist() == []


def words(number: int, chooser: random.Random) -> list[str]:
    return ["".join(chooser.choices("abcdefghijklmnop", k=6)) for _ in range(number)]


def test_near_duplicates_are_found_and_others_are_not() -> None:
    """Against the true Jaccard similarity of the sets of pieces: all above 0.9 are found, none below 0.65 is."""
    chooser = random.Random(0)
    originals = [words(60, chooser) for _ in range(12)]
    texts = [" ".join(original) for original in originals]
    for share in (0.0, 0.01, 0.02, 0.03, 0.1, 0.3, 0.6):
        for original in originals:
            changed = [words(1, chooser)[0] if chooser.random() < share else word for word in original]
            texts.append(" ".join(changed))
    sets = [{text[start : start + 10] for start in range(len(text) - 9)} for text in texts]
    found = nearly_repeated([np.stack([signature(text) for text in part]) for part in (texts[:20], texts[20:])])
    assert not found[:12].any()
    for number in range(12, len(texts)):
        similar = max(len(sets[number] & sets[other]) / len(sets[number] | sets[other]) for other in range(number))
        assert found[number] or similar < 0.9, similar
        assert not found[number] or similar > 0.65, similar


def test_a_signature_is_the_same_whatever_the_case_and_white_space() -> None:
    assert (signature("Satu  dua\ntiga empat") == signature("satu dua tiga empat")).all()
    assert signature("ab").dtype == np.uint32
    assert (signature("ab") != signature("cd")).any()

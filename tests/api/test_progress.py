"""Termination messages fit into 4 KiB, and reading one never fails."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from transfer_api.progress import TERMINATION_MESSAGE_BYTES, ArtifactReference, Outcome, Progress, ResultMessage, Score

SCORE = Score(
    suite="perplexity", task="udhr", language="id", metric="bits_per_byte", value=1.23456789, baseline=2.0, interval=(-0.1, 0.1), items=30
)
ARTIFACT = ArtifactReference(key="k" * 32, path="artifacts/evaluation/k", digest="sha256:" + "0" * 64)


def read(text: str) -> ResultMessage:
    message = ResultMessage.decode(text)
    assert message is not None
    return message


def test_a_message_comes_back_as_it_was() -> None:
    message = ResultMessage(outcome=Outcome.COMPLETE, artifact=ARTIFACT, scores=[SCORE], step=7, numbers={"added_tokens": 100})
    back = read(message.encode())
    assert back.scores[0].value == 1.23457
    assert back.model_copy(update={"scores": [SCORE]}) == message


def test_scores_that_do_not_fit_are_counted() -> None:
    back = read(ResultMessage(outcome=Outcome.COMPLETE, artifact=ARTIFACT, scores=[SCORE] * 100).encode())
    assert 0 < len(back.scores) < 100
    assert len(back.scores) + back.scores_left_out == 100
    assert back.artifact == ARTIFACT


def test_the_first_score_and_those_of_english_are_the_last_to_go() -> None:
    english = SCORE.model_copy(update={"task": "udhr-en", "language": "en-US", "baseline": 1.0})
    other = SCORE.model_copy(update={"language": "id"})
    back = read(ResultMessage(outcome=Outcome.COMPLETE, scores=[other] * 50 + [english] + [other] * 50 + [english]).encode())
    assert back.scores_left_out > 0
    assert back.scores[0].language == "id"
    assert [score.task for score in back.scores].count("udhr-en") == 2


def test_details_of_scores_go_before_any_score_does() -> None:
    detailed = SCORE.model_copy(update={"resampled": "document", "p_value": 0.04, "adjusted_p_value": 0.08, "part_of": "g"})
    few = read(ResultMessage(outcome=Outcome.COMPLETE, scores=[detailed] * 5).encode())
    assert few.scores[0].adjusted_p_value == 0.08
    many = read(ResultMessage(outcome=Outcome.COMPLETE, scores=[detailed] * 20).encode())
    assert many.scores_left_out == 0
    assert (many.scores[0].p_value, many.scores[0].part_of) == (None, "g")


@pytest.mark.parametrize("text", ["x" * 10_000, "語" * 5_000, '"\\' * 4_000], ids=["ascii", "three bytes each", "escaped"])
def test_a_long_message_is_cut(text: str) -> None:
    encoded = ResultMessage(outcome=Outcome.FAILED, reason="DataError", message=text).encode()
    assert len(encoded.encode()) <= TERMINATION_MESSAGE_BYTES
    assert read(encoded).reason == "DataError"
    assert len(read(encoded).message) > 100


def test_what_cannot_be_cut_otherwise_loses_its_numbers() -> None:
    encoded = ResultMessage(outcome=Outcome.COMPLETE, reason="r" * 100, numbers={f"number_{i}": 1.0 for i in range(1000)}).encode()
    assert len(encoded.encode()) <= TERMINATION_MESSAGE_BYTES
    assert read(encoded).numbers == {}


@pytest.mark.parametrize("text", ["", "Killed", "{}", "[1]", '{"outcome": "Perhaps"}', "x" * 9000, "{" * 3000])
def test_what_is_no_message_is_none(text: str) -> None:
    assert ResultMessage.decode(text) is None


HUGE = 10**19
"""More than 64 bits hold."""


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"step": HUGE}, "step"),
        ({"step": 2**53 + 1}, "step"),
        ({"step": -1}, "step"),
        ({"lostSteps": HUGE}, "lostSteps"),
        ({"scoresLeftOut": HUGE}, "scoresLeftOut"),
        ({"scores": [{**SCORE.model_dump(mode="json", by_alias=True), "items": HUGE}]}, "scores[0].items"),
    ],
    ids=["more than 64 bits", "more than a float holds", "negative", "steps done again", "scores left out", "items of a score"],
)
def test_a_result_with_a_number_that_no_status_holds_is_refused_with_its_field(fields: dict[str, object], named: str) -> None:
    text = json.dumps({"outcome": "Complete", **fields})
    assert ResultMessage.decode(text) is None
    with pytest.raises(ValueError, match=r"than or equal to") as caught:
        ResultMessage.read(text)
    assert str(caught.value).startswith(f"{named}: ")
    assert len(str(caught.value)) < 200, "without the value, which may be long"


@pytest.mark.parametrize("field", ["step", "totalSteps", "tokens", "worldSize", "round", "checkpointStep", "lostSteps"])
@pytest.mark.parametrize("value", [HUGE, 2**53 + 1, -1])
def test_progress_with_a_number_that_no_status_holds_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValidationError, match="than or equal to"):
        Progress.model_validate({field: value})
    assert Progress.model_validate({field: 2**53})


def test_progress_with_names_that_a_status_would_cut_is_refused() -> None:
    assert Progress.model_validate({"metrics": {"n" * 128: 1.0}})
    with pytest.raises(ValidationError, match="at most 128"):
        Progress.model_validate({"metrics": {"n" * 129: 1.0}})
    with pytest.raises(ValidationError, match="at most 1024"):
        Progress.model_validate({"metrics": {f"n{number}": 1.0 for number in range(1025)}})


@settings(deadline=None, max_examples=50)
@given(reason=st.text(max_size=80), message=st.text(max_size=6000), count=st.integers(0, 40))
def test_every_message_fits_and_can_be_read(reason: str, message: str, count: int) -> None:
    encoded = ResultMessage(outcome=Outcome.FAILED, reason=reason, message=message, scores=[SCORE] * count).encode()
    assert len(encoded.encode()) <= TERMINATION_MESSAGE_BYTES
    assert read(encoded).outcome is Outcome.FAILED

"""How a pod ends: exit code and termination message."""

import errno
from pathlib import Path

import pytest

from transfer_api.errors import ArtifactError, DataError, SaveRequested
from transfer_api.progress import TERMINATION_MESSAGE_BYTES, ArtifactReference, Outcome, ResultMessage, Score
from transfer_pod.end import finish

ARTIFACT = ArtifactReference(key="k", path="artifacts/vocabulary/k", digest="sha256:0")


def ending_with(error: BaseException):
    def work() -> ResultMessage:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "outcome", "words"),
    [
        pytest.param(DataError("is empty", field="spec.a", value="x"), 10, Outcome.FAILED, "spec.a: is empty", id="bad data"),
        pytest.param(ArtifactError("cut short"), 11, Outcome.FAILED, "cut short", id="unreadable artifact"),
        pytest.param(SaveRequested("saved at step 7"), 75, Outcome.SAVED, "saved at step 7", id="saved on request"),
        pytest.param(OSError(errno.ENOSPC, "full"), 10, Outcome.FAILED, "no space left", id="disk full"),
        pytest.param(ValueError("surprise"), 1, Outcome.FAILED, "ValueError: surprise", id="crash"),
    ],
)
def test_an_error_decides_code_and_message(tmp_path: Path, error: BaseException, code: int, outcome: Outcome, words: str) -> None:
    log = tmp_path / "termination-log"
    assert finish(log, tmp_path, ending_with(error)) == code
    message = ResultMessage.decode(log.read_text())
    assert message is not None
    assert message.outcome is outcome
    assert words in message.message


def test_success_leaves_the_artifact_in_the_message(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    assert finish(log, tmp_path, lambda: ResultMessage(outcome=Outcome.COMPLETE, artifact=ARTIFACT)) == 0
    message = ResultMessage.decode(log.read_text())
    assert message is not None
    assert message.artifact == ARTIFACT


def score(task: str) -> Score:
    return Score(
        suite="s", task=task, language="id", metric="acc", value=0.123456789, baseline=0.1, difference=0.02, interval=(0.0, 0.04), items=57
    )


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(ResultMessage(outcome=Outcome.FAILED, message="ü" * 20_000), id="a long message"),
        pytest.param(ResultMessage(outcome=Outcome.FAILED, message='"\\\n' * 9_000), id="a message that grows when escaped"),
        pytest.param(
            ResultMessage(outcome=Outcome.COMPLETE, artifact=ARTIFACT, scores=[score(f"task-{n}") for n in range(200)]), id="many scores"
        ),
    ],
)
def test_a_message_always_fits_and_can_be_read_back(message: ResultMessage) -> None:
    text = message.encode()
    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    back = ResultMessage.decode(text)
    assert back is not None
    assert back.outcome is message.outcome
    assert back.scores_left_out + len(back.scores) == len(message.scores)


@pytest.mark.parametrize("text", ["", "Killed", "{", "[]", '{"outcome": "Won"}', "x" * 20_000])
def test_what_is_no_message_is_none(text: str) -> None:
    assert ResultMessage.decode(text) is None

"""How errors read, and the small arithmetic of the status."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from transfer_api.errors import ArtifactError, DataError, ExitCode, SaveRequested, TransferError, shorten
from transfer_api.language import check_language
from transfer_api.status import REASON_TEXT, Cause, ExperimentStatus, Phase, ProgressStatus, Reason, Restarts, WorkersStatus, second


def test_an_error_says_field_problem_value_allowed_and_next_step() -> None:
    error = TransferError("is wrong", field="spec.seed", value=-1, allowed="0 or more", next_step="Raise it")
    assert str(error) == "spec.seed: is wrong (got -1); allowed: 0 or more. Raise it"
    assert str(TransferError("is wrong")) == "is wrong"


def test_a_long_value_is_cut_in_the_middle() -> None:
    text = shorten("a" * 50 + "b" * 1000)
    assert len(text) < 110
    assert "..." in text
    assert "1052 characters" in text
    assert shorten("short") == "'short'"


@pytest.mark.parametrize("path", ["/a folder/" + "b/" * 100, "texts/" + "id-" * 50 + ".jsonl", "~/my texts/" + "c" * 90])
def test_a_path_is_never_cut(path: str) -> None:
    assert shorten(path) == repr(path)


@pytest.mark.parametrize("text", ["either/or " * 20, "/" * 5000, "/one\n" * 50])
def test_what_is_no_path_is_cut(text: str) -> None:
    assert "..." in shorten(text)


def test_the_class_decides_the_exit_code() -> None:
    assert DataError("x").exit_code is ExitCode.CANNOT_WORK
    assert ArtifactError("x").exit_code is ExitCode.UNREADABLE
    assert SaveRequested("x").exit_code is ExitCode.SAVED


@pytest.mark.parametrize("code", ["id", "zh-Hans", "sw", "pt-BR", "yue"])
def test_languages_that_exist_are_kept_as_written(code: str) -> None:
    assert check_language(code) == code


@pytest.mark.parametrize("code", ["xx", "indonesian", "", "id_ID!", "id_ID", "root", "x-foo", "i-klingon", "a" * 40])
def test_languages_that_do_not_exist_are_refused(code: str) -> None:
    with pytest.raises(ValueError, match="BCP 47"):
        check_language(code)


def test_restarts_add_up_and_saving_is_not_counted() -> None:
    restarts = Restarts().plus(Cause.APPLICATION).plus(Cause.SAVED, 2) + Restarts(stall=3)
    assert restarts.count(Cause.SAVED) == 2
    assert restarts.total == 4
    assert Restarts.model_validate(restarts.model_dump()) == restarts


def test_every_reason_has_a_text_and_terminal_phases_are_two() -> None:
    assert set(REASON_TEXT) == set(Reason)
    assert [phase for phase in Phase if phase.terminal] == [Phase.COMPLETE, Phase.FAILED]


def test_a_status_survives_being_written() -> None:
    status = ExperimentStatus(phase=Phase.RUNNING, restarts=Restarts(stall=1), start_time=second(datetime.now(UTC)))
    assert ExperimentStatus.model_validate_json(status.model_dump_json(by_alias=True)) == status


def test_times_are_utc_and_whole_seconds() -> None:
    east = timezone(timedelta(hours=7))
    assert second(datetime(2026, 1, 1, 7, 0, 0, 999_999, tzinfo=east)) == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3660, "1h01m"), (86_400 + 7_300, "1d2h")],
)
def test_the_time_left_is_one_word(seconds: int | None, text: str) -> None:
    assert ProgressStatus(stage="s", remaining_seconds=seconds).eta == text


def test_columns_say_ready_of_desired_and_restarts_by_cause() -> None:
    assert [WorkersStatus(ready=ready, desired=desired).summary for ready, desired in ((2, 3), (0, 2), (0, 0))] == ["2/3", "0/2", ""]
    assert Restarts(saved=2).summary == "0"
    assert Restarts(infrastructure=2, stall=1, saved=4).summary == "3 (infrastructure 2, stall 1)"

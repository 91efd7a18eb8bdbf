"""What stays on the screen is told once."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.evaluator.reports import scores
from transfer_api.progress import Activity, Progress
from transfer_api.stage import StageKind
from transfer_api.status import ExperimentStatus, Failure, Phase, Reason, StageState, StageStatus
from transfer_cli.display import Display, open_console, score_table
from transfer_operator.decide import Event

MESSAGE = "the file /" + "a/" * 200 + "texts.jsonl is empty"


def test_a_failure_is_told_once_and_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    display = Display(open_console(), "id", None)
    failure = Failure(reason=Reason.CANNOT_WORK, stage="evaluation", pod="evaluation-w0-g1", exit_code=10, message=MESSAGE)
    status = ExperimentStatus(phase=Phase.FAILED, failure=failure)
    display.update(status, None, [Event(reason=Reason.CANNOT_WORK, message=MESSAGE, warning=True)])
    display.update(status, None, [])
    display.failed(status, tmp_path)
    told = capsys.readouterr().out
    assert told.count(MESSAGE) == 1
    assert "Failed (CannotWork) in evaluation" in told
    assert f"Log: {tmp_path}/logs/evaluation-w0-g1.log" in told


def test_a_table_longer_than_a_screen_is_printed_without_the_parts_of_its_means(capsys: pytest.CaptureFixture[str]) -> None:
    whole = scores()[0].model_copy(update={"task": "all-of-it", "parts": 60})
    parts = [scores()[0].model_copy(update={"task": f"part-{n}", "part_of": "all-of-it"}) for n in range(60)]
    open_console().print(score_table([whole, *parts]))
    told = capsys.readouterr().out
    assert "all-of-it" in told
    assert "part-1" not in told
    assert "The 60 lines of single tasks and categories are in the report." in told
    open_console().print(score_table([whole, *parts[:9]]))
    assert "part-1" in capsys.readouterr().out


def test_a_line_of_progress_that_says_nothing_new_is_not_printed_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfer_cli.display.PLAIN_LINE_EVERY_S", -1)
    display, progress = Display(open_console(), "id", None), Progress(activity=Activity.VALIDATING, total_steps=24)
    for now in (progress, progress, progress.model_copy(update={"step": 1}), progress.model_copy(update={"step": 1})):
        display.update(ExperimentStatus(stage="pretraining"), now, [])
    assert capsys.readouterr().out == "  pretraining: Validating, 0/24\n  pretraining: Validating, 1/24\n"


def test_what_is_unusual_about_the_items_stands_below_the_table_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, *others = scores()
    odd = first.model_copy(update={"task": "sums", "notes": ["3 of 6 items stand there twice"]})
    part = odd.model_copy(update={"task": "sums/one", "part_of": "sums"})
    Display(open_console(), "id", None).finish(ExperimentStatus(), [odd, odd.model_copy(update={"metric": "f1"}), part, *others], tmp_path)
    told = capsys.readouterr().out
    assert told.count("3 of 6 items stand there twice") == 1
    assert "Unusual: sums: 3 of 6" in told


def test_other_events_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    Display(open_console(), "id", None).update(ExperimentStatus(), None, [Event(reason="PodWaits", message="w0 waits", warning=True)])
    assert "w0 waits" in capsys.readouterr().out


def test_a_stage_that_was_stopped_over_night_took_as_long_as_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(open_console(), "id", None)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    stage = StageStatus(name="pretraining", kind=StageKind.PRETRAINING, key="0" * 32, state=StageState.RUNNING, start_time=yesterday)
    display.update(ExperimentStatus(stages=[stage]), None, [])
    done = stage.model_copy(update={"state": StageState.COMPLETE, "completion_time": datetime.now(UTC)})
    display.update(ExperimentStatus(stages=[done]), None, [])
    assert "pretraining: complete in 0 s" in capsys.readouterr().out


def test_a_run_goes_on_when_nobody_reads_its_lines_any_more() -> None:
    code = "from transfer_cli.display import Display, open_console; d = Display(open_console(), 'id', None); " + (
        "import sys; [d.line('step') for _ in range(3)]; sys.stderr.write('went on')"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "went on")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "transfer: standard output cannot be written: No space left on device\nwent on")


def test_scores_beside_nothing_have_no_columns_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    open_console().print(score_table(scores()))
    beside = capsys.readouterr().out
    assert "Scores beside the base model" in beside
    assert "difference" in beside
    nothing = {"baseline": None, "difference": None}
    open_console().print(score_table([score.model_copy(update=nothing) for score in scores()]))
    alone = capsys.readouterr().out
    assert "base" not in alone
    assert "difference" not in alone
    assert "result" in alone
    assert "0.440" in alone

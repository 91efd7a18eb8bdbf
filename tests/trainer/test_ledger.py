"""The ledger proves what was read, shows what was done twice, and notices what was tampered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transfer_api.errors import ArtifactError
from transfer_trainer.ledger import Ledger, StepLine, read_ledger, verify_ledger
from transfer_trainer.rows import RowOrder, digest

ORDER = RowOrder(1, (2, 1), (11, 7))
PER_STEP = 4


def line(step: int, seconds: float = 1.0) -> StepLine:
    return StepLine(
        step=step, first_row=(step - 1) * PER_STEP, rows=PER_STEP, digest=digest(ORDER.step(step - 1, PER_STEP).checksum()),
        world_size=1, round=0, loss=1 / step, tokens=step, seconds=seconds, learning_rate=0.1, gradient_norm=1.0, time=0.0,
    )  # fmt: skip


def write(path: Path, first: int, last: int, seconds: float = 1.0) -> None:
    ledger = Ledger(path, first - 1)
    for step in range(first, last + 1):
        ledger.step(line(step, seconds))
    ledger.close()


def test_a_steady_run_is_proved(tmp_path: Path) -> None:
    write(tmp_path / "ledger", 1, 6)
    summary = verify_ledger(tmp_path / "ledger", ORDER, PER_STEP, 6)
    assert (summary.steps, summary.lost_steps, summary.productive_seconds, summary.highest_step) == (6, 0, 6.0, 6)


def test_steps_after_the_checkpoint_become_lost_and_count_their_first_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    write(path, 1, 5, seconds=1.0)
    write(path, 4, 7, seconds=10.0)  # from the checkpoint of step 3: steps 4 and 5 are done again
    summary = verify_ledger(path, ORDER, PER_STEP, 7)
    assert summary.lost_steps == 2
    assert summary.productive_seconds == 5 * 1.0 + 2 * 10.0
    assert [json.loads(text)["kind"] for text in path.read_text().splitlines()].count("lost") == 2


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    write(path, 1, 3)
    path.write_text(path.read_text() + '{"kind": "step", "st')
    assert read_ledger(path).steps == 3
    write(path, 3, 4)
    assert verify_ledger(path, ORDER, PER_STEP, 4).lost_steps == 1


def test_measurements_of_lost_steps_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    write(path, 1, 2)
    ledger = Ledger(path, 2)
    ledger.validation(2, {"udhr": 2.0})
    ledger.step(line(3))
    ledger.validation(3, {"udhr": 1.9})
    ledger.close()
    write(path, 3, 3)
    assert [point["step"] for point in read_ledger(path).validation] == [2]


def test_a_process_of_an_older_round_cannot_write_into_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    zombie = Ledger(path, 0)
    zombie.step(line(1))
    write(path, 2, 3)
    zombie.step(line(2))
    assert verify_ledger(path, ORDER, PER_STEP, 3).steps == 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: lines[:2] + lines[3:], id="a step is missing"),
        pytest.param(lambda lines: [*lines[:3], lines[2], *lines[3:]], id="a step is there twice"),
        pytest.param(lambda lines: [lines[1], lines[0], *lines[2:]], id="steps are out of order"),
        pytest.param(lambda lines: lines[:-1], id="the last step is missing"),
        pytest.param(lambda lines: [text.replace('"first_row": 8', '"first_row": 9') for text in lines], id="other rows"),
        pytest.param(lambda lines: [lines[0].replace('"digest": "', '"digest": "0'), *lines[1:]], id="other digest"),
        pytest.param(lambda lines: ["not json", *lines[1:]], id="a line is not JSON"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, change: object) -> None:
    path = tmp_path / "ledger"
    write(path, 1, 5)
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")  # type: ignore[operator]
    with pytest.raises(ArtifactError):
        verify_ledger(path, ORDER, PER_STEP, 5)


def test_a_ledger_shorter_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "ledger", 1, 3)
    with pytest.raises(ArtifactError, match="does not hold the 4 steps"):
        Ledger(tmp_path / "ledger", 4)

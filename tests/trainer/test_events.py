"""What TensorBoard itself reads of the event files of a training."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from tests.support.experiment import wait_for
from tests.support.pods import LENGTH, ROWS_PER_STEP, cluster, losses, make_storage, training_stage
from transfer_api.spec import NamedText
from transfer_trainer.events import EventFiles

KEY = "a" * 32
Curve = list[tuple[int, float]]


def curves(folder: Path) -> dict[tuple[str, str], Curve]:
    """Every curve below a folder by run and name, as `tensorboard --logdir` would show it."""
    shown = EventMultiplexer(tensor_size_guidance={"scalars": 0}, purge_orphaned_data=True)
    shown.AddRunsFromDirectory(str(folder))
    shown.Reload()
    found = {}
    for run in shown.Runs():
        accumulator = shown.GetAccumulator(run)
        for tag in accumulator.Tags()["tensors"]:
            found[run, tag] = [(event.step, float(event.tensor_proto.float_val[0])) for event in accumulator.Tensors(tag)]
    return found


def refuse(folder: Path) -> None:
    """Has the disk take no more of the event files that this process has open."""
    full = os.open("/dev/full", os.O_WRONLY)
    for path in Path("/proc/self/fd").iterdir():
        if path.is_symlink() and str(path.readlink()).startswith(str(folder)):
            os.dup2(full, int(path.name))
    os.close(full)


def test_steps_done_again_after_a_kill_are_shown_once_and_one_process_of_two_writes(tmp_path: Path) -> None:
    (tmp_path / "held-out.txt").write_text("saya makan nasi\n\nkamu minum air\n")
    stage = training_stage(
        KEY, make_storage(tmp_path), steps=30, checkpoint_steps=10, validation_steps=15,
        validation_texts=[NamedText(name="held-out", path="held-out.txt", language="id")],
    )  # fmt: skip
    with cluster(tmp_path, stage, max_nodes=1) as group:
        pod = group.start(0, processes=2)
        wait_for(lambda: group.saved and group.ledger.steps > group.saved + 1, what="a checkpoint is there and passed")
        pod.kill()
        assert group.start(0).wait() == 0
        summary = group.ledger
    assert summary.lost_steps > 0
    found = curves(tmp_path)
    run = f"tensorboard/pretraining-{KEY[:8]}"
    steps, tokens = range(1, 31), ROWS_PER_STEP * LENGTH
    by_step, by_tokens = found[run, "training/loss"], found[f"{run}/tokens", "by_tokens/training/loss"]
    assert [step for step, _ in by_step] == list(steps)
    assert [value for _, value in by_step] == pytest.approx(losses(summary), rel=1e-6)
    assert by_tokens == [(step * tokens, value) for step, value in by_step]
    assert [step for step, _ in found[run, "bits_per_byte/held-out"]] == [0, 15, 30]
    assert {value for _, value in found[run, "speed/processes"]} == {1.0, 2.0}
    rates = [value for _, value in found[run, "training/learning_rate"]]
    assert rates == pytest.approx([line.learning_rate for line in summary.lines], rel=1e-6)
    assert all(0 <= value < 1 for _, value in found[run, "speed/data_wait"])
    assert len(list((tmp_path / run).glob("events*"))) == 2  # rounds; three processes took part


def test_a_later_round_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for first, last in ((0, 8), (5, 9)):
        files = EventFiles(tmp_path, first, 100 * first)
        for step in range(first + 1, last + 1):
            files.add(step, 100 * step, {"loss": step + first / 10, "mfu": None})
        files.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0), (6, 6.5), (7, 7.5), (8, 8.5), (9, 9.5)]
    found = curves(tmp_path)
    assert found[".", "loss"] == expected
    assert found["tokens", "by_tokens/loss"] == [(100 * step, value) for step, value in expected]
    assert len(found) == 2


def test_a_run_from_the_start_takes_everything_back(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        files = EventFiles(tmp_path, 0, 0)
        files.add(0, 0, {"bits_per_byte/udhr-id": value})
        files.close()
    assert curves(tmp_path)[".", "bits_per_byte/udhr-id"] == [(0, 2.0)]


def test_a_disk_that_refuses_is_told_of_once_and_what_was_written_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = EventFiles(tmp_path, 0, 0)
    files.add(1, 100, {"loss": 1.0})
    refuse(tmp_path)
    with caplog.at_level(logging.WARNING):
        files.add(2, 200, {"loss": 2.0})
        files.add(3, 300, {"loss": 3.0})
        files.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"no more event files until the next round, {tmp_path}: No space left on device; training goes on"
    ]
    assert curves(tmp_path)[".", "loss"] == [(1, 1.0)]

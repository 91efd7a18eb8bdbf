"""What a launcher makes of how its workers end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pods import make_dataset, training_stage
from transfer_api.progress import Progress
from transfer_pod.context import PodContext
from transfer_trainer.launcher import PEER_LOSSES, Launcher, WorkerCrashError
from transfer_trainer.worker import LOST, End, explain


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    stage = training_stage("a" * 32, make_dataset(tmp_path), steps=10)
    (tmp_path / "run").mkdir()
    return Launcher(PodContext(stage=stage, storage=tmp_path, pod="p0"), tmp_path / "run")


def lose_the_others(launcher: Launcher, times: int) -> None:
    for _ in range(times):
        explain(launcher.folder, 0, "DistBackendError", "NCCL error: unhandled system error", LOST)
        launcher._judge(End.PEER_LOST)


def test_peers_that_are_lost_again_and_again_without_a_step_end_the_pod_with_what_the_network_said(launcher: Launcher) -> None:
    launcher.file.write(Progress(step=3))
    lose_the_others(launcher, PEER_LOSSES - 1)
    with pytest.raises(WorkerCrashError, match=f"lost the others {PEER_LOSSES} times at step 3, .* NCCL error: unhandled system error"):
        lose_the_others(launcher, 1)


def test_a_finished_step_in_between_begins_the_count_anew(launcher: Launcher) -> None:
    for step in (3, 4):
        launcher.file.write(Progress(step=step))
        lose_the_others(launcher, PEER_LOSSES - 1)


def test_what_a_worker_says_of_the_others_is_not_taken_for_the_fault_of_one_that_crashed(launcher: Launcher) -> None:
    explain(launcher.folder, 0, "DistBackendError", "connection reset by peer", LOST)
    explain(launcher.folder, 1, "ValueError", "ValueError: broken row")
    launcher._judge(End.CRASHED)
    with pytest.raises(WorkerCrashError, match=r"^ValueError: broken row$"):
        launcher._judge(End.CRASHED)

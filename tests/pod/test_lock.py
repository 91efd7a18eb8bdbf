"""Who may make a stage in a storage that several runs share."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_api.errors import StorageError
from transfer_api.stage import StageKind, StagePlan
from transfer_pod.artifact import ArtifactStore
from transfer_pod.lock import StageLock

STAGE = StagePlan(name="dataset", kind=StageKind.DATASET, key="a" * 32, parameters={})
HOLD = (
    "import sys; from pathlib import Path; from transfer_api.stage import StagePlan; from transfer_pod.lock import StageLock\n"
    "lock = StageLock(Path(sys.argv[1]), StagePlan.model_validate_json(sys.argv[2]))\n"
    "print(lock.take(), flush=True); sys.stdin.read()"
)


def test_another_stage_is_free_and_the_same_one_is_not(tmp_path: Path) -> None:
    first, second = StageLock(tmp_path, STAGE), StageLock(tmp_path, STAGE)
    other = StageLock(tmp_path, STAGE.model_copy(update={"key": "b" * 32}))
    assert (first.take(), first.take(), second.take(), other.take()) == (True, True, False, True)
    first.release()
    assert second.take()


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), STAGE.model_dump_json(by_alias=True)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        lock = StageLock(tmp_path, STAGE)
        assert not lock.take()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert lock.take()


def test_the_lock_outlives_the_work_folder(tmp_path: Path) -> None:
    first = StageLock(tmp_path, STAGE)
    assert first.take()
    ArtifactStore(tmp_path).work(STAGE.kind, STAGE.key).rmdir()
    assert not StageLock(tmp_path, STAGE).take()


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where a folder should be")
    with pytest.raises((StorageError, NotADirectoryError, FileExistsError)):
        StageLock(tmp_path, STAGE).take()

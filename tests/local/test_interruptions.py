"""Whatever is stopped or killed, the same command goes on and ends with the same losses; the ledger proves each row."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.experiment import Run, Workplace, wait_for, workplace
from transfer_api.status import Cause

pytestmark = pytest.mark.timeout(900)  # whole runs, on a machine that may be busy


def pretraining(folder: Path, **workers: int) -> Workplace:
    place = workplace(folder, instructionTuning=None, evaluation=None, workers=workers)
    place.spec["pretraining"] |= {"steps": 60, "checkpointSteps": 3}
    del place.spec["pretraining"]["validationSteps"]
    return place


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The ledger of one worker that nobody disturbed."""
    place = pretraining(tmp_path_factory.mktemp("steady"), min=1, replicas=1)
    code, text = place.run()
    assert code == 0, text
    return place.ledger()


def steps_done(place: Workplace, count: int) -> None:
    wait_for(lambda: len(place.ledger()) >= count, what=f"{count} steps in the ledger")


def _holder(place: Workplace) -> int:
    """Process id in the lock of the output folder, 0 for none."""
    path = place.output / ".lock"
    return int(path.read_text() or 0) if path.exists() else 0


def refuses_another(place: Workplace, process: Run) -> None:
    """A second run beside the first is refused. The first stands still meanwhile, so that it cannot be done before the second comes."""
    wait_for(lambda: _holder(place) == process.pid, what="the run has its folder")
    process.send_signal(signal.SIGSTOP)
    try:
        code, text = place.run()
        assert code == 2, text
        assert str(process.pid) in text
    finally:
        process.send_signal(signal.SIGCONT)


def launchers(process: Run) -> dict[str, psutil.Process]:
    """Launchers of the run by their pod's name."""
    found = {}
    for child in psutil.Process(process.pid).children():
        if child.cmdline()[-1:] == ["transfer_trainer"]:
            found[child.environ()["TRANSFER_POD"]] = child
    return found


def stop_with_ctrl_c(place: Workplace, process: Run) -> None:
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 75, text
    assert "Stopping: what runs is saved first" in text
    assert place.status()["phase"] == "Suspended"
    assert place.status()["restarts"]["total"] == 0, "stopping is not a failure"
    assert place.stage("pretraining")["lostSteps"] == 0


def kill_everything(place: Workplace, process: Run) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "a pod outlived the run"


def kill_a_worker_and_wait(place: Workplace, process: Run) -> None:
    found = launchers(process)
    os.killpg(found[min(found)].pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text


def test_a_run_that_is_stopped_killed_and_crippled_ends_as_a_steady_one(steady: list[dict], tmp_path: Path) -> None:
    place = pretraining(tmp_path, min=1, replicas=2, max=3)
    for steps, blow in ((8, stop_with_ctrl_c), (20, kill_everything), (32, kill_a_worker_and_wait)):
        process = place.start("--output", str(place.output), imported=False)
        try:
            refuses_another(place, process)
            steps_done(place, steps)
            blow(place, process)
            if blow is stop_with_ctrl_c:  # what is forgotten meanwhile is made again
                shutil.rmtree(next((place.storage / "artifacts" / "dataset").iterdir()))
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
    stage = place.stage("pretraining")
    assert stage["state"] == "Complete"
    # What its user stops or kills was not lost; a worker alone was.
    assert stage["restarts"]["infrastructure"] == 1
    assert [record["generation"] for record in stage["workers"]] == [2, 1]
    ledger = place.ledger()
    assert [line["step"] for line in ledger] == [line["step"] for line in steady]
    assert [line["digest"] for line in ledger] == [line["digest"] for line in steady], "other rows were read"
    assert 2 in {line["world_size"] for line in ledger}
    worst = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ledger, steady, strict=True))
    assert worst < 1e-5


@pytest.mark.parametrize("begun", [False, True], ids=["before anything runs", "while a stage sets itself up"])
def test_ctrl_c_at_the_very_start_is_no_failure_either(tmp_path: Path, begun: bool) -> None:
    place = workplace(tmp_path, instructionTuning=None)
    process = place.start("--output", str(place.output), imported=begun)
    if begun:
        wait_for(lambda: place.stage("baseline").get("state") == "Running", what="the first stage is started")
    else:
        wait_for(lambda: b"transfer_cli" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), what="the command runs")
        wait_for(lambda: signal.SIGTERM in _caught(process.pid), what="its first line is reached")
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 75, text
    assert "Traceback" not in text
    restarts = place.status().get("restarts", {})
    assert not any(restarts.get(cause) for cause in Cause)


def _caught(pid: int) -> set[int]:
    """Signals for which a process has a handler of its own."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}

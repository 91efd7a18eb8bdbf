"""Whatever is stopped or killed, the same command goes on and ends with the same losses; the ledger proves each row."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.experiment import Workplace, wait_for, workplace

ONLY_PRETRAINING = {"instructionTuning": None, "evaluation": None}


def pretraining(folder: Path, **workers: int) -> Workplace:
    place = workplace(folder, **ONLY_PRETRAINING, workers=workers or {"min": 1, "replicas": 1, "max": 3})
    place.spec["pretraining"] |= {"steps": 60, "checkpointSteps": 3}
    del place.spec["pretraining"]["validationSteps"]
    return place


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The ledger of a run that nobody disturbed."""
    place = pretraining(tmp_path_factory.mktemp("steady"))
    code, text = place.run()
    assert code == 0, text
    return place.ledger()


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return pretraining(tmp_path, min=1, replicas=2, max=3)


@pytest.fixture
def running(place: Workplace) -> Iterator[subprocess.Popen[str]]:
    process = place.start("--output", str(place.output))
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def assert_same_as(steady: list[dict], ledger: list[dict]) -> None:
    assert [line["step"] for line in ledger] == [line["step"] for line in steady]
    assert [line["digest"] for line in ledger] == [line["digest"] for line in steady], "other rows were read"
    worst = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ledger, steady, strict=True))
    assert worst < 1e-5


def steps_done(place: Workplace, count: int) -> None:
    wait_for(lambda: len(place.ledger()) >= count, what=f"{count} steps in the ledger")


def workers(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """Launchers of the run by their pod's name."""
    found = {}
    for child in psutil.Process(process.pid).children():
        command = child.cmdline()
        if command[-1:] == ["transfer_trainer"]:
            found[child.environ()["TRANSFER_POD"]] = child
    return found


def test_ctrl_c_saves_and_the_same_command_goes_on(steady: list[dict], place: Workplace, running: subprocess.Popen[str]) -> None:
    steps_done(place, 10)
    running.send_signal(signal.SIGINT)
    text, _ = running.communicate(timeout=90)
    assert running.returncode == 75, text
    assert place.status()["phase"] == "Suspended"
    assert place.status()["restarts"]["application"] == 0
    saved = len(place.ledger())
    code, text = place.run()
    assert code == 0, text
    assert_same_as(steady, place.ledger())
    assert place.stage("pretraining").get("lostSteps", 0) == 0, f"saved at {saved}"


def test_a_killed_worker_is_replaced_while_the_other_goes_on(steady: list[dict], place: Workplace, running: subprocess.Popen[str]) -> None:
    steps_done(place, 5)
    first = sorted(workers(running))[0]
    os.killpg(workers(running)[first].pid, signal.SIGKILL)
    text, _ = running.communicate(timeout=200)
    assert running.returncode == 0, text
    stage = place.stage("pretraining")
    assert stage["restarts"]["infrastructure"] == 1
    assert stage["attempt"] == 1, "the other worker kept the attempt alive"
    assert [record["generation"] for record in stage["workers"]] == [2, 1]
    assert_same_as(steady, place.ledger())


def test_killing_everything_loses_only_the_steps_since_the_checkpoint(
    steady: list[dict], place: Workplace, running: subprocess.Popen[str]
) -> None:
    steps_done(place, 8)
    children = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    running.communicate()
    psutil.wait_procs(children, timeout=20)
    assert not any(child.is_running() for child in children), "a pod outlived the run"
    code, text = place.run()
    assert code == 0, text
    assert_same_as(steady, place.ledger())


def test_a_second_run_beside_the_first_is_refused(place: Workplace, running: subprocess.Popen[str]) -> None:
    wait_for(lambda: (place.output / "status.yaml").exists(), what="the first run's status")
    code, text = place.run()
    assert code == 2
    assert str(running.pid) in text

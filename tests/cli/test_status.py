"""`transfer status`: what it says of a run that goes on, and of one that was killed and could not say so itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from tests.support.folders import write_experiment
from transfer_api.errors import SpecError
from transfer_api.stage import StageKind
from transfer_api.status import ExperimentStatus, Phase, StageState, StageStatus
from transfer_cli import lock
from transfer_cli.main import main
from transfer_cli.outputs import STATUS

HOLD = (
    "import sys; from pathlib import Path; from transfer_cli import lock\n"
    "with lock.hold(Path(sys.argv[1]), 'demo'): print(1, flush=True); input()"
)
GOES_ON = "the same `transfer run` goes on"


def leave(output: Path, phase: Phase) -> None:
    """The status that a run in this phase has written last."""
    state = StageState.RUNNING if phase is Phase.RUNNING else StageState.SUSPENDED
    stage = StageStatus(name="pretraining", kind=StageKind.PRETRAINING, key="a" * 32, state=state)
    status = ExperimentStatus(phase=phase, stage="pretraining", stages=[stage])
    (output / STATUS).write_text(yaml.safe_dump(status.model_dump(mode="json", by_alias=True, exclude_none=True)))


def said(output: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, str]:
    assert main(["status", str(output), *options]) == 0
    told = capsys.readouterr()
    return told.out, told.err


def test_a_run_is_running_until_it_is_killed_and_then_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, Phase.RUNNING)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "1\n"
        assert "Phase:     Running\n" in said(tmp_path, capsys)[0]
        run.send_signal(signal.SIGKILL)
        run.wait()
    text, _ = said(tmp_path, capsys)
    assert "Phase:     Interrupted" in text
    assert GOES_ON in text
    assert "Running" not in text


def test_yaml_stays_as_it_is_stored_and_the_interruption_is_told_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, Phase.RUNNING)
    text, beside = said(tmp_path, capsys, "-o", "yaml")
    assert text == (tmp_path / STATUS).read_text()
    assert GOES_ON in beside


@pytest.mark.parametrize("phase", [Phase.COMPLETE, Phase.FAILED])
def test_a_run_that_ended_by_itself_was_not_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str], phase: Phase) -> None:
    leave(tmp_path, phase)
    assert f"Phase:     {phase}\n" in said(tmp_path, capsys)[0]


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, Phase.SUSPENDED)
    assert "Phase:     Suspended: everything is saved; the same `transfer run` goes on from there\n" in said(tmp_path, capsys)[0]


def test_the_file_of_an_experiment_stands_for_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_experiment(tmp_path)
    assert main(["status", str(file)]) == 2
    told = capsys.readouterr().err
    assert "has no run here (got 'experiment.yaml')" in told.replace(f"{tmp_path}/", "")
    assert "Looked for runs/demo/status.yaml; a run with --output goes by that folder" in told
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    leave(tmp_path / "runs" / "demo", Phase.COMPLETE)
    for named in (str(file), "runs/demo/status.yaml"):
        assert main(["status", named]) == 0
        assert "Phase:     Complete\n" in capsys.readouterr().out
    assert main(["status", "id.txt"]) == 2
    assert "id.txt" in capsys.readouterr().err


def test_a_lock_that_cannot_be_read_claims_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, Phase.RUNNING)
    (tmp_path / lock.LOCK).mkdir()
    assert "Phase:     Running\n" in said(tmp_path, capsys)[0]


def test_a_run_that_begins_during_a_look_is_not_refused(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / lock.LOCK).touch()
    with (tmp_path / lock.LOCK).open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(look, fcntl.LOCK_UN)).start()
        with lock.hold(tmp_path, "demo"):
            assert lock.is_held(tmp_path)


def test_a_second_run_is_refused_by_the_number_of_the_first(tmp_path: Path) -> None:
    import os

    with lock.hold(tmp_path, "demo"), pytest.raises(SpecError, match=f"process {os.getpid()}"), lock.hold(tmp_path, "demo"):
        pass

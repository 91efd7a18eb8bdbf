"""`transfer ledger verify`: what it says of a true ledger, of a false one, and of no run at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support.pods import ROWS_PER_STEP, make_storage, training_stage
from transfer_api.stage import StagePlan
from transfer_api.status import ArtifactStatus, ExperimentStatus, StageState, StageStatus
from transfer_cli.main import main
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.ledger import LEDGER
from transfer_trainer.loop import Training
from transfer_trainer.parallel import Team

STEPS = 4
STAGE = training_stage("a" * 32, "d" * 32, steps=STEPS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with one finished training stage."""
    storage = tmp_path_factory.mktemp("storage")
    assert make_storage(storage) == STAGE.inputs["dataset"]
    assert Training(PodContext(stage=STAGE, storage=storage, pod="pod"), Team(), lambda: False, lambda progress: None).run()
    return storage


def verify(
    output: Path, storage: Path, state: StageState = StageState.COMPLETE, stage: StagePlan = STAGE, artifact: ArtifactStatus | None = None
) -> int:
    output.mkdir(exist_ok=True)
    said = StageStatus(name=stage.name, kind=stage.kind, key=stage.key, state=state, artifact=artifact)
    status = ExperimentStatus(stages=[said]).model_dump(mode="json", by_alias=True, exclude_none=True)
    (output / "status.yaml").write_text(yaml.safe_dump(status))
    return main(["ledger", "verify", str(output), "--storage", str(storage)])


def test_a_true_ledger_is_proved_with_steps_rows_and_processes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path / "run", trained) == 0
    said = capsys.readouterr().out
    assert (
        f"pretraining: proved: {STEPS} steps, {STEPS * ROWS_PER_STEP} rows, each read when it was due and none twice; processes 1;" in said
    )


def test_the_same_stage_in_another_storage_is_not_taken_for_that_of_the_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ArtifactStore(trained).find(STAGE.kind, STAGE.key)
    assert there is not None
    mine = ArtifactStatus(path=there.path, digest=there.digest)
    assert verify(tmp_path / "run", trained, artifact=mine) == 0
    assert verify(tmp_path / "run", trained, artifact=mine.model_copy(update={"digest": "sha256:" + "0" * 64})) == 11
    said = capsys.readouterr().err
    assert "made by another run of the same stage" in said
    assert "--storage" in said


def test_a_run_of_several_passes_is_not_said_to_have_read_no_row_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_storage(tmp_path)
    stage = training_stage("b" * 32, "d" * 32, steps=8)  # 56 rows, 42 of them of id, which has 40
    assert Training(PodContext(stage=stage, storage=tmp_path, pod="pod"), Team(), lambda: False, lambda progress: None).run()
    assert verify(tmp_path / "run", tmp_path, stage=stage) == 0
    assert (
        "8 steps, 56 rows, each read when it was due and none twice in a pass (passes over id: 2); processes 1;" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("number", "change"),
    [(1, {"digest": "0" * 64}), (2, {"first_row": 0}), (3, {"step": 3}), (3, None), (2, {"loss": 0.1}), (2, {"kind": "lost"})],
    ids=["other rows", "rows read twice", "a step twice", "a step missing", "another loss", "a step called lost"],
)
def test_a_ledger_that_is_wrong_ends_with_11(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, change: dict[str, object] | None
) -> None:
    path = ArtifactStore(trained).path(STAGE.kind, STAGE.key) / LEDGER
    true = path.read_text()
    lines = [json.loads(line) for line in true.splitlines()]
    lines[number : number + 1] = [] if change is None else [lines[number] | change]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        assert verify(tmp_path / "run", trained) == 11
    finally:
        path.write_text(true)
    assert "WRONG" in capsys.readouterr().err


def test_another_storage_is_named_and_an_unfinished_stage_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path / "run", tmp_path / "empty") == 11
    assert "--storage" in capsys.readouterr().err
    assert verify(tmp_path / "run", tmp_path / "empty", StageState.RUNNING) == 0
    assert not (tmp_path / "empty").exists(), "looking makes no folder"


def test_the_steps_so_far_of_an_unfinished_stage_are_proved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_storage(tmp_path) == STAGE.inputs["dataset"]
    looks = iter(range(100))
    stopped = Training(PodContext(stage=STAGE, storage=tmp_path, pod="pod"), Team(), lambda: next(looks) == 3, lambda progress: None)
    assert not stopped.run()
    assert verify(tmp_path / "run", tmp_path, StageState.SUSPENDED) == 0
    assert f"not finished; right so far: 3 steps, {3 * ROWS_PER_STEP} rows" in capsys.readouterr().out
    path = ArtifactStore(tmp_path).work(STAGE.kind, STAGE.key) / LEDGER
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines]) + "\n")
    assert verify(tmp_path / "run", tmp_path, StageState.SUSPENDED) == 11


def test_a_run_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "verify", "nothing-of-this-name"]) == 2
    assert "has no run here" in capsys.readouterr().err

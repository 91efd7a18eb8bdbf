"""`transfer report` of a run that it cannot write again: what is said of storage, inputs and file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.documents import EVALUATION, changed, document
from tests.support.folders import write_experiment
from transfer_api.load import load_experiment
from transfer_api.stage import plan_stages
from transfer_api.status import ExperimentStatus, Phase, StageState, StageStatus
from transfer_cli.inputs import fingerprints
from transfer_cli.main import main
from transfer_cli.outputs import STATUS
from transfer_pod.artifact import ArtifactStore


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A folder with an experiment that is complete: storage/ and output/ as a run leaves them, but for what the artifacts hold."""
    file, store = write_experiment(tmp_path, document(evaluation=EVALUATION)), ArtifactStore(tmp_path / "storage")
    experiment = load_experiment(file)
    stages = []
    for stage in plan_stages(experiment.spec, fingerprints(experiment, storage=store.root, search=(tmp_path,))):
        (store.work(stage.kind, stage.key) / "file").write_text("x")
        store.commit(stage, store.work(stage.kind, stage.key))
        stages.append(StageStatus(name=stage.name, kind=stage.kind, key=stage.key, state=StageState.COMPLETE))
    status = ExperimentStatus(phase=Phase.COMPLETE, stages=stages).model_dump(mode="json", by_alias=True, exclude_none=True)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / STATUS).write_text(yaml.safe_dump(status))
    return tmp_path


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], storage: str = "storage") -> str:
    options = ["--storage", str(folder / storage), "--output", str(folder / "output")]
    assert main(["report", str(folder / "experiment.yaml"), *options]) == 2
    return capsys.readouterr().err


def test_another_storage_is_named_and_not_the_file(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(ran, capsys, "another")
    assert f"--storage: does not hold what this run has made (baseline, pretraining-dataset, pretraining, evaluation) (got '{ran}" in told
    assert "changed" not in told
    assert not (ran / "another").exists()


def test_an_input_that_is_gone_is_named(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ran / "id.txt").unlink()
    told = refusal(ran, capsys)
    assert "reads what is not there any more" in told
    assert "'id.txt'" in told


def test_a_file_that_has_changed_is_said_to_have_changed(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ran / "experiment.yaml").write_text(yaml.safe_dump(changed(document(evaluation=EVALUATION), "spec.pretraining.tokens", "80K")))
    told = refusal(ran, capsys)
    assert "spec: has changed since it ran, or what it reads has" in told
    assert f"Run `transfer run {ran}/experiment.yaml --output {ran}/output --storage {ran}/storage`; stages" in told


def test_a_run_that_is_to_come_first_is_named_with_the_folders_that_were_given(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ran / "output" / STATUS).unlink()
    assert f"Run `transfer run {ran}/experiment.yaml --output {ran}/output --storage {ran}/storage` first" in refusal(ran, capsys)


def test_the_folder_of_a_run_is_not_its_file(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(ran / "output")]) == 2
    assert "FILE: is a folder" in capsys.readouterr().err

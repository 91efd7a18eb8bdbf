"""The output folder of `transfer run`: what is a run's and what is somebody's own, what is whole, and what is put there again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.finished import finished
from transfer_api.errors import ExitCode, StorageError
from transfer_api.status import ExperimentStatus, Phase, Reason
from transfer_cli.main import main
from transfer_cli.outputs import NAMES, STAMP, STATUS, Written, read_status, write_status


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an experiment of which every stage is finished and nothing has been given to people yet."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path)
    return tmp_path


def run(*options: str) -> int:
    return main(["run", "experiment.yaml", "--storage", "storage", "--output", "output", *options])


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def damage(place: Path) -> Path:
    """Cuts a file of the last model in the storage short."""
    weights = next((place / "storage" / "artifacts" / "instruction-tuning").glob("*/model/model.safetensors"))
    os.truncate(weights, 10)
    return weights


def phase(place: Path) -> Phase:
    status = read_status(place / "output")
    assert status is not None
    return status.phase


def test_every_name_that_a_run_writes_is_known_beforehand(place: Path) -> None:
    assert run() == 0
    assert phase(place) is Phase.COMPLETE
    assert {path.name for path in (place / "output").iterdir()} == {*NAMES, STAMP}
    written = Written.read(place / "output")
    assert written is not None
    assert {*written.files} == names(place / "output") - {STATUS, STAMP, ".lock"}


@pytest.mark.parametrize("name", NAMES)
def test_what_no_run_has_made_is_left_alone(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "output").mkdir()
    (place / "output" / name).write_text("mine")
    assert run() == ExitCode.REFUSED
    told = capsys.readouterr().err
    assert f"output: holds what no run has made and a run would replace: {name} (got" in told
    assert "--output" in told
    assert names(place / "output") == {name}


def test_a_link_that_leads_nowhere_is_somebodys_too(place: Path) -> None:
    (place / "output").mkdir()
    (place / "output" / "adapter").symlink_to("elsewhere")
    assert run() == ExitCode.REFUSED


def test_other_files_beside_the_outputs_stay(place: Path) -> None:
    (place / "output").mkdir()
    (place / "output" / "notes.txt").write_text("mine")
    assert run() == 0
    assert (place / "output" / "notes.txt").read_text() == "mine"


def test_the_output_of_a_run_that_was_copied_without_its_hidden_files_is_a_runs(place: Path) -> None:
    assert run() == 0
    (place / "output" / STAMP).unlink()
    assert run() == 0


@pytest.mark.parametrize("content", ["", "phase: [", "kind: Pod\n"])
def test_a_status_that_cannot_be_read_makes_way(place: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    (place / "output" / STATUS).write_text(content)
    assert run() == 0
    assert phase(place) is Phase.COMPLETE
    assert (place / "output" / "status.yaml.unreadable").read_text() == content
    assert "status.yaml.unreadable" in capsys.readouterr().out


def test_a_status_that_was_removed_is_written_again(place: Path) -> None:
    assert run() == 0
    (place / "output" / STATUS).unlink()
    assert run() == 0
    assert phase(place) is Phase.COMPLETE


def test_a_damaged_last_artifact_fails_the_run_by_its_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = damage(place)
    assert run() == ExitCode.UNREADABLE
    assert f"Failed (CheckpointUnreadable): {weights} is not the file that was written" in capsys.readouterr().out
    status = read_status(place / "output")
    assert status is not None
    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert (status.failure.reason, status.failure.exit_code) == (Reason.CHECKPOINT_UNREADABLE, ExitCode.UNREADABLE)
    assert {one.type: one.status for one in status.conditions}["Complete"] == "False"


def test_complete_is_said_when_everything_is_there_and_not_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfer_cli import outputs

    def killed(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "_report", killed)
    assert run() == ExitCode.SAVED
    assert read_status(place / "output") is None
    assert Written.read(place / "output") is None


def weights(output: Path) -> None:
    (output / "model" / "model.safetensors").unlink()


def adapter(output: Path) -> None:
    (output / "adapter" / "adapter_config.json").unlink()
    (output / "adapter").rmdir()


def results(output: Path) -> None:
    (output / "results.json").unlink()


def items(output: Path) -> None:
    (output / "items" / "evaluation" / "held-out.jsonl").unlink()


@pytest.mark.parametrize("remove", [weights, adapter, results, items])
def test_another_run_puts_there_what_is_missing_and_keeps_what_was_changed(place: Path, remove: Callable[[Path], None]) -> None:
    assert run() == 0
    output = place / "output"
    before = names(output)
    (output / "model" / "config.json").write_text("changed")
    remove(output)
    assert names(output) < before
    assert run() == 0
    assert names(output) == before
    assert (output / "model" / "config.json").read_text() == "changed"


def test_what_a_killed_run_was_writing_is_removed_by_the_next_and_pushed_by_none(place: Path) -> None:
    assert run() == 0
    output = place / "output"
    before = names(output)
    left = [
        output / ".report.html.0123456789abcdef",
        output / "model" / ".README.md.0123456789abcdef",
        output / "..written.0123456789abcdef",
    ]
    for path in left:
        path.write_text("half")
    assert main(["push", "output/", "given"]) == 0
    assert not list((place / "given").glob(".README*"))
    (output / "report.html").unlink()
    assert run() == 0
    assert names(output) == before
    assert not any(path.exists() for path in left)


def test_a_report_that_is_asked_for_writes_all_again(place: Path) -> None:
    assert run() == 0
    (place / "output" / "model" / "config.json").write_text("changed")
    assert main(["report", "experiment.yaml", "--storage", "storage", "--output", "output"]) == 0
    assert (place / "output" / "model" / "config.json").read_text() != "changed"


def test_what_is_missing_and_damaged_in_the_storage_too_ends_with_eleven(place: Path) -> None:
    assert run() == 0
    damage(place)
    assert run() == 0, "what was given is whole"
    weights(place / "output")
    assert run() == ExitCode.UNREADABLE
    assert phase(place) is Phase.FAILED


def test_a_model_that_was_moved_to_another_disk_by_a_link_gives_its_place_to_the_next(place: Path) -> None:
    assert run() == 0
    output = place / "output"
    (output / "model").rename(place / "moved")
    (output / "model").symlink_to(place / "moved")
    (output / STAMP).write_bytes(b"")
    assert run() == 0
    assert (output / "model" / "model.safetensors").is_file()
    assert not (output / "model").is_symlink()
    assert (place / "moved" / "model.safetensors").is_file()


def zeroed(place: Path) -> Path:
    """Spoils a file of the last model in the storage, and leaves its size."""
    weights = next((place / "storage" / "artifacts" / "instruction-tuning").glob("*/model/model.safetensors"))
    weights.write_bytes(bytes(weights.stat().st_size))
    return weights


def test_a_model_that_is_spoilt_at_its_size_is_not_given_to_people(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = zeroed(place)
    assert run() == ExitCode.UNREADABLE
    assert f"{weights} is not the file that was written" in capsys.readouterr().out
    assert phase(place) is Phase.FAILED


def test_the_output_of_another_experiment_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    before = names(place / "output")
    (place / "experiment.yaml").write_text((place / "experiment.yaml").read_text().replace("name: demo", "name: other"))
    assert run() == ExitCode.REFUSED
    assert "output: holds what the experiment demo has made" in capsys.readouterr().err
    assert main(["report", "experiment.yaml", "--storage", "storage", "--output", "output"]) == ExitCode.REFUSED
    assert "output: holds what the experiment demo has made" in capsys.readouterr().err
    assert names(place / "output") == before


def edited(place: Path) -> None:
    """The stamp of a run whose evaluation alone was another."""
    written = Written.recorded(place / "output")
    last = list(written.artifacts)[-1]
    written.model_copy(update={"artifacts": {**written.artifacts, last: "sha256:0"}}).write(place / "output")


def trained_otherwise(place: Path) -> None:
    """The stamp of a run whose model was another, with a shard that this one has not."""
    written = Written.recorded(place / "output")
    shard = "model/model-00002-of-00002.safetensors"
    (place / "output" / shard).write_text("old")
    others = dict.fromkeys(written.artifacts, "sha256:0")
    written.model_copy(update={"artifacts": others, "files": [*written.files, shard]}).write(place / "output")


@pytest.mark.parametrize("before", [edited, trained_otherwise])
def test_what_people_put_beside_a_model_stays(place: Path, before: Callable[[Path], None]) -> None:
    assert run() == 0
    (place / "output" / "model" / "model.gguf").write_text("converted")
    before(place)
    (place / "output" / "model" / "model.safetensors").write_text("changed")
    assert run() == 0
    folder = place / "output" / "model"
    assert (folder / "model.gguf").read_text() == "converted"
    assert not (folder / "model-00002-of-00002.safetensors").exists()
    # A model that is the same is not written again.
    assert ((folder / "model.safetensors").read_bytes() == b"changed") is (before is edited)
    written = Written.read(place / "output")
    assert written is not None
    assert written.missing(place / "output") == []


def test_an_output_that_is_removed_while_a_run_goes_on_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="output: is gone") as found:
        write_status(tmp_path / "gone", ExperimentStatus())
    assert found.value.exit_code is ExitCode.CANNOT_WORK

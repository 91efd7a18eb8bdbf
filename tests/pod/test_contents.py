"""An artifact is kept under the key of what was read, never under that of what was there before or after."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from transfer_api.errors import ArtifactError, ExitCode
from transfer_api.progress import Progress, ResultMessage
from transfer_api.stage import StageKind, StagePlan
from transfer_pod import contents
from transfer_pod.contents import Digests, check_contents
from transfer_pod.context import PodContext
from transfer_pod.shard import run_shard

PARAMETERS = {"model": {"path": "model"}, "texts": [{"path": "held.jsonl"}, {"path": "more/*.txt"}], "taskFolders": ["tasks"]}


@pytest.fixture
def context(tmp_path: Path) -> PodContext:
    for name in ("model/config.json", "more/a.txt", "tasks/mine.yaml", "held.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    digests = Digests(tmp_path)
    files = {name: digests.of_input(tmp_path / name, model=name == "model") for name in ("model", "held.jsonl", "more/*.txt", "tasks")}
    digests.save()
    stage = StagePlan(name="evaluation", kind=StageKind.EVALUATION, key="e" * 32, parameters=PARAMETERS, files=files)
    return PodContext(stage=stage, storage=tmp_path, pod="p", termination_log=tmp_path / "end", address="127.0.0.1", port=0)


def test_what_is_as_it_was_is_not_read_again(context: PodContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    check_contents(context)


def test_a_new_time_is_no_change(context: PodContext) -> None:
    os.utime(context.storage / "held.jsonl", (1, 1))
    check_contents(context)
    assert Digests(context.storage).entries[str(context.storage / "held.jsonl")]["mark"][1] == 10**9


def test_a_file_beside_a_model_that_does_not_decide_it_is_no_change(context: PodContext) -> None:
    (context.storage / "model" / "README.md").write_text("about it")
    check_contents(context)


def overwritten(folder: Path) -> str:
    (folder / "held.jsonl").write_text("other words")
    return "held.jsonl"


def one_more(folder: Path) -> str:
    (folder / "more" / "b.txt").write_text("new")
    return "more/*.txt"


def task(folder: Path) -> str:
    (folder / "tasks" / "items.jsonl").write_text("{}")
    return "tasks"


def weights(folder: Path) -> str:
    (folder / "model" / "model.safetensors").write_text("weights")
    return "model"


def gone(folder: Path) -> str:
    (folder / "held.jsonl").unlink()
    return "held.jsonl"


@pytest.mark.parametrize("change", [overwritten, one_more, task, weights, gone])
def test_what_changed_is_named(context: PodContext, change: Callable[[Path], str]) -> None:
    path = change(context.storage)
    with pytest.raises(ArtifactError, match=r"since this run was planned") as found:
        check_contents(context)
    assert found.value.value == path


def test_a_pod_whose_input_changed_before_it_began_ends_with_code_11(context: PodContext) -> None:
    overwritten(context.storage)

    def stage(context: PodContext, report: Callable[[Progress], None]) -> ResultMessage:
        pytest.fail("nothing is to be made of it")

    assert run_shard(context, stage) == ExitCode.UNREADABLE
    assert "held.jsonl" in (context.storage / "end").read_text()


def test_where_nobody_saw_the_files_there_is_nothing_to_compare(context: PodContext) -> None:
    overwritten(context.storage)
    stage = context.stage.model_copy(update={"files": {}})
    check_contents(replace(context, stage=stage))

"""A stage in one process, from environment to exit code."""

import json
import os
import signal
import urllib.request
from pathlib import Path

import pytest

from transfer_api.progress import Activity, Outcome, Progress, ResultMessage
from transfer_api.stage import StageKind, StagePlan
from transfer_cli.local import free_port
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_pod.shard import Report, run_shard

STAGE = StagePlan(name="vocabulary", kind=StageKind.VOCABULARY, key="0" * 32, parameters={})


@pytest.fixture
def context(tmp_path: Path) -> PodContext:
    return PodContext(stage=STAGE, storage=tmp_path, pod="v-w0-g1", port=free_port(), termination_log=tmp_path / "end")


def message(context: PodContext) -> ResultMessage:
    found = ResultMessage.decode(context.termination_log.read_text())
    assert found is not None
    return found


def make(context: PodContext, report: Report) -> ResultMessage:
    store = ArtifactStore(context.storage)
    folder = store.work(STAGE.kind, STAGE.key) / "artifact"
    folder.mkdir()
    (folder / "a").write_text("1")
    return ResultMessage(outcome=Outcome.COMPLETE, artifact=store.commit(STAGE, folder, numbers={"rows": 2.0}))


def test_a_finished_stage_is_not_run_again(context: PodContext) -> None:
    assert run_shard(context, make) == 0
    assert not message(context).reused

    def never(context: PodContext, report: Report) -> ResultMessage:
        raise AssertionError("ran again")

    assert run_shard(context, never) == 0
    assert message(context).reused
    assert message(context).numbers == {"rows": 2.0}


def test_progress_is_served_while_the_stage_runs(context: PodContext) -> None:
    def stage(context: PodContext, report: Report) -> ResultMessage:
        report(Progress(activity=Activity.RUNNING, step=3))
        with urllib.request.urlopen(f"http://127.0.0.1:{context.port}/progress", timeout=5) as answer:
            told = json.load(answer)
        assert (told["pod"], told["stage"], told["step"]) == ("v-w0-g1", "vocabulary", 3)
        return make(context, report)

    assert run_shard(context, stage) == 0


def test_sigterm_ends_a_shard_with_75(context: PodContext) -> None:
    def stage(context: PodContext, report: Report) -> ResultMessage:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)  # the handler runs before this returns
        raise AssertionError("went on")

    assert run_shard(context, stage) == 75
    assert message(context).outcome is Outcome.SAVED

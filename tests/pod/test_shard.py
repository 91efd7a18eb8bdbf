"""A stage in one process, from environment to exit code."""

import json
import os
import signal
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.support.experiment import wait_for
from transfer_api.progress import Activity, Outcome, Progress, ResultMessage
from transfer_api.stage import StageKind, StagePlan
from transfer_cli.local import free_port
from transfer_pod import shard
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


def told(context: PodContext) -> Progress:
    with urllib.request.urlopen(f"http://127.0.0.1:{context.port}/progress", timeout=5) as answer:
        return Progress.model_validate_json(answer.read())


def later(context: PodContext, moment: float | None) -> bool:
    """Whether work went on after this moment, as the operator sees it."""
    assert moment is not None
    found = told(context).last_step_time
    return found is not None and found > moment


def test_loading_and_long_calls_tell_that_work_goes_on_without_a_word_of_the_stage(
    context: PodContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "BEAT_SECONDS", 0.02)

    def stage(context: PodContext, report: Report) -> ResultMessage:
        wait_for(lambda: later(context, told(context).last_step_time), 20, "loading goes on")
        report(Progress(activity=Activity.RUNNING, step=1))
        with shard.at_work(report, Progress(activity=Activity.SAVING, step=2)):
            wait_for(lambda: told(context).step == 2, 20, "the call is told of")
            wait_for(lambda: later(context, told(context).last_step_time), 20, "the call goes on")
        assert not [thread for thread in threading.enumerate() if thread.name == "at-work"], "nothing beats when nothing works"
        return make(context, report)

    assert run_shard(context, stage) == 0


def test_a_call_that_hangs_stops_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(shard, "LONGEST_CALL_SECONDS", 0.0)
    reports: list[Progress] = []
    with shard.at_work(reports.append, Progress()):
        wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "at-work"], 20, "the thread ends")
    assert len(reports) == 1

"""The whole stage on the tiny model: as a function, and as the process a pod runs."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.evaluator.tasks import LETTERS, write_tasks
from tests.support.experiment import wait_for
from tests.support.tiny import SENTENCES, drop_tensor, save_tiny_model
from tests.support.warm import Process
from transfer_api.errors import DataError, ModelError, SpecError
from transfer_api.progress import Activity, Outcome, Progress, ResultMessage
from transfer_api.spec import ModelSource, NamedText, Precision
from transfer_api.stage import EvaluationParameters, StageKind, StagePlan, stage_key
from transfer_cli.local import free_port
from transfer_evaluator.stage import Meter, run
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.dataset import load_tokenizer
from transfer_trainer.packing import pack_stream
from transfer_trainer.store import RowWriter


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    save_tiny_model(folder / "base")
    save_tiny_model(folder / "other", seed=1)
    (folder / "tasks").mkdir()
    write_tasks(folder / "tasks")
    (folder / "tasks" / "examless.yaml").write_text(
        LETTERS.replace("task: letters", "task: examless").replace("test_split: test", "test_split: exam")
    )
    (folder / "id.txt").write_text("\n\n".join(SENTENCES[2:] * 3))
    (folder / "en.txt").write_text("\n\n".join(SENTENCES[:2]))
    return folder


def plan(model: str = "base", suites: tuple[str, ...] = ("perplexity", "letters"), baseline: str | None = None, **changes) -> StagePlan:
    parameters = EvaluationParameters(
        **{
            "model": ModelSource(path=model),
            "suites": list(suites),
            "task_folders": ["tasks"],
            "shots": None,
            "limit": None,
            "texts": [NamedText(name="udhr-id", path="id.txt", language="id"), NamedText(name="udhr-en", path="en.txt", language="en")],
            "precision": Precision.FLOAT32,
            "seed": 0,
            **changes,
        }
    ).model_dump(mode="json", by_alias=True)
    inputs = {"baseline": baseline} if baseline else {}
    key = stage_key(StageKind.EVALUATION, parameters, inputs, {})
    return StagePlan(name="evaluation", kind=StageKind.EVALUATION, key=key, parameters=parameters, inputs=inputs)


def context(storage: Path, stage: StagePlan, **values) -> PodContext:
    return PodContext(stage=stage, storage=storage, pod="demo-evaluation-w0-g1", **values)


def test_scores_items_and_settings_are_in_the_artifact_and_the_baseline_beside_them(storage):
    base = plan()
    reports: list[Progress] = []
    first = run(context(storage, base), reports.append)
    assert first.outcome is Outcome.COMPLETE
    assert [(s.suite, s.task, s.metric) for s in first.scores[:3]] == [
        ("perplexity", "udhr-id", "bits_per_byte"), ("perplexity", "udhr-en", "bits_per_byte"), ("letters", "letters", "acc"),
    ]  # fmt: skip
    assert all(score.baseline is None and score.interval is not None for score in first.scores)
    assert reports[-1].activity is Activity.DONE
    assert reports[-1].step == reports[-1].total_steps > 0

    second = run(context(storage, plan("other", baseline=base.key)), lambda progress: None)
    values = {(s.task, s.metric): s.value for s in first.scores}
    for score in second.scores:
        assert score.baseline == pytest.approx(values[score.task, score.metric])
        assert score.difference == pytest.approx(score.value - score.baseline)
    assert {score.language for score in second.scores if score.suite == "perplexity"} == {"id", "en"}

    store = ArtifactStore(storage)
    folder = store.open(StageKind.EVALUATION, base.key)
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"model", "harness", "scores", "settings"}
    assert len((folder / "items" / "perplexity.udhr-id.jsonl").read_text().splitlines()) == 6
    assert len(store.manifest(StageKind.EVALUATION, base.key)["scores"]) == len(first.scores)


def test_the_same_model_scored_again_differs_from_itself_by_nothing(storage):
    base = plan(suites=("perplexity", "cloze"))
    run(context(storage, base), lambda progress: None)
    again = run(context(storage, plan(suites=("perplexity", "cloze"), baseline=base.key)), lambda progress: None)
    assert all((score.difference, score.interval) == (0.0, (0.0, 0.0)) for score in again.scores)


def test_an_earlier_try_that_was_killed_leaves_nothing_behind(storage):
    stage = plan(seed=5, suites=("perplexity",))
    rest = ArtifactStore(storage).work(StageKind.EVALUATION, stage.key) / "artifact"
    (rest / "items").mkdir(parents=True)
    (rest / "items" / "old.jsonl").write_text("{}")
    run(context(storage, stage), lambda progress: None)
    assert "items/old.jsonl" not in ArtifactStore(storage).manifest(StageKind.EVALUATION, stage.key)["files"]


def test_the_overlap_with_the_rows_of_training_is_counted_for_each_task(storage):
    """Of the Indonesian text one of two sentences has 13 words and was trained on; of the English one none was."""
    tokenizer = load_tokenizer(storage / "base")
    stage = StagePlan(name="d", kind=StageKind.DATASET, key="d" * 32, parameters={})
    folder = ArtifactStore(storage).draft(stage, "p")
    writer = RowWriter(folder / "rows", sequence_length=16, seed=0, tokenizer="")
    with writer.source("id", 1) as source:
        for row in pack_stream([tokenizer(SENTENCES[3]).input_ids, tokenizer(SENTENCES[2]).input_ids], 16, 0):
            source.append(row)
    writer.finish()
    ArtifactStore(storage).commit(stage, folder, numbers={})

    trained = plan(contamination=True)
    trained = trained.model_copy(update={"inputs": {"pretraining_rows": stage.key}})
    result = run(context(storage, trained), lambda progress: None)
    content = json.loads((ArtifactStore(storage).path(StageKind.EVALUATION, trained.key) / "results.json").read_text())
    found = {overlap["task"]: (overlap["items"], overlap["contaminated"], overlap["short"]) for overlap in content["contamination"]}
    assert found["udhr-id"] == (3, 3, 3)
    assert found["udhr-en"] == (1, 0, 1)
    assert sum(found["letters"]) - found["letters"][1] > 0, "the questions of a task are judged too"
    assert result.numbers["contaminated_items"] == 3


@pytest.mark.parametrize(
    ("stage", "error", "field"),
    [
        pytest.param(plan(texts=[]), SpecError, "spec.evaluation.texts", id="perplexity without texts"),
        pytest.param(plan(task_folders=["nowhere"]), DataError, "spec.evaluation.taskFolders", id="no such task folder"),
        pytest.param(plan(texts=[NamedText(name="t", path="nowhere.txt")]), DataError, "spec.evaluation.texts[0].path", id="no such text"),
        pytest.param(plan(suites=("examless",)), DataError, "spec.evaluation.suites", id="no such split"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_a_model_is_loaded(storage, monkeypatch, stage, error, field):
    monkeypatch.setattr("transfer_evaluator.stage.load_model", lambda *a: pytest.fail("loaded a model"))
    with pytest.raises(error) as refused:
        run(context(storage, stage), lambda progress: None)
    assert refused.value.field == field


def test_weights_of_which_one_is_missing_are_refused_and_not_made_up(storage):
    drop_tensor(save_tiny_model(storage / "torn"))
    with pytest.raises(ModelError, match=r"lacks 1 weights.*down_proj") as refused:
        run(context(storage, plan("torn", suites=("perplexity",))), lambda progress: None)
    assert refused.value.field == "spec.model"
    assert refused.value.next_step


def test_progress_is_reported_at_most_twice_a_second_and_says_how_long_is_left():
    now = [0.0]
    reports: list[Progress] = []
    meter = Meter(reports.append, clock=lambda: now[0])
    done = meter.begin(10)
    for _ in range(4):
        now[0] += 0.2
        done(1, 50)
    assert [report.step for report in reports] == [0, 3]
    assert reports[-1].remaining_seconds == pytest.approx(0.6 * 7 / 3)
    assert reports[-1].tokens_per_second == pytest.approx(250)


def start(context: PodContext) -> Process:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **offline, **context.environment()}
    return Process("transfer_evaluator", environment, output=context.termination_log.with_suffix(".output"))


def test_the_pod_ends_with_its_scores_in_the_termination_message_and_is_reused(storage, tmp_path):
    stage = plan(seed=7, suites=("perplexity",))
    for reused in (False, True):
        log = tmp_path / f"termination-{reused}"
        process = start(context(storage, stage, termination_log=log, port=free_port()))
        assert process.wait(120) == 0, process.said
        message = ResultMessage.decode(log.read_text())
        assert message is not None
        assert message.outcome is Outcome.COMPLETE
        assert message.reused is reused
        assert [score.task for score in message.scores] == ["udhr-id", "udhr-en", *["udhr-id"] * 2, *["udhr-en"] * 2]


def test_an_unknown_suite_ends_the_pod_with_10_and_the_nearest_name(storage, tmp_path):
    log = tmp_path / "termination"
    stage = plan(suites=("lettres",))
    process = start(context(storage, stage, termination_log=log, port=free_port()))
    assert process.wait(200) == 10, process.said
    message = ResultMessage.decode(log.read_text())
    assert message is not None
    assert message.reason == "SpecError"
    assert "spec.evaluation.suites" in message.message
    assert "lettres" in message.message
    assert "letters" in message.message


def test_a_pod_asked_to_stop_ends_with_75_and_leaves_no_artifact(storage, tmp_path):
    (storage / "long.txt").write_text("\n\n".join(f"{number} {SENTENCES[2] * 20}" for number in range(2000)))
    stage = plan(suites=("perplexity",), texts=[NamedText(name="long", path="long.txt")])
    port = free_port()
    process = start(context(storage, stage, termination_log=tmp_path / "termination", port=port))
    wait_for(lambda: running(port) or process.poll() is not None, 100, "the pod scores")
    assert process.poll() is None, "it ended before it was asked to"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert ArtifactStore(storage).find(StageKind.EVALUATION, stage.key) is None


def running(port: int) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=1) as answer:
            return bool(json.load(answer).get("activity") == "Running")
    except OSError:
        return False

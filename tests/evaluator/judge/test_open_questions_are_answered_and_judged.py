"""The suite `llm-eval` as a whole stage: a tiny model answers, real endpoints judge."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.experiment import wait_for
from tests.support.judge_server import NAMES, JudgeServer, scores_of
from tests.support.tiny import save_tiny_model
from tests.support.warm import Process
from transfer_api.errors import DataError, SpecError
from transfer_api.progress import Outcome, Progress, ResultMessage
from transfer_api.spec import Judge, JudgePace, JudgeSpending, ModelSource, NamedText, Precision, QuestionSource
from transfer_api.stage import EvaluationParameters, Execution, StageKind, StagePlan, stage_key
from transfer_cli.local import free_port
from transfer_evaluator.judge import client
from transfer_evaluator.judge.answering import Answerer
from transfer_evaluator.judge.exam import exam_files
from transfer_evaluator.model import load_model
from transfer_evaluator.stage import run
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_pod.shard import finished

CATEGORIES = ("事实问答", "诗歌", "数学")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    save_tiny_model(folder / "base")
    save_tiny_model(folder / "other", seed=1)
    lines = [{"question": f"Apa itu {n}?", "category": CATEGORIES[n % 3], "reference": "angka" if n % 2 else None} for n in range(24)]
    write(folder / "open.jsonl", lines)
    write(folder / "mixed.jsonl", [{"question": f"q{n}", "language": ("sw", "zh")[n % 2]} for n in range(4)])
    return folder


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as server:
        yield server


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def plan(
    url: str, model: str = "base", baseline: str | None = None, pace: JudgePace | None = None, second: bool = False, **changes
) -> StagePlan:
    judge = changes.pop("judge", {})
    parameters = EvaluationParameters(
        **{
            "model": ModelSource(path=model), "suites": ["llm-eval"], "task_folders": [], "shots": None, "limit": None, "texts": [],
            "questions": [QuestionSource(name="open", path="open.jsonl", language="id")], "answer_tokens": 12,
            "judge": Judge(url=url, model="judge-a", **judge), "second_judge": Judge(url=url, model="judge-b") if second else None,
            "precision": Precision.FLOAT32, "seed": 0, **changes,
        }
    ).model_dump(mode="json", by_alias=True)  # fmt: skip
    inputs = {"baseline": baseline} if baseline else {}
    key = stage_key(StageKind.EVALUATION, parameters, inputs, {})
    execution = Execution(judge_pace=pace)
    return StagePlan(name="evaluation", kind=StageKind.EVALUATION, key=key, parameters=parameters, inputs=inputs, execution=execution)


def context(storage: Path, stage: StagePlan, **values) -> PodContext:
    return PodContext(stage=stage, storage=storage, pod="demo-evaluation-w0-g1", **values)


def evaluate(storage: Path, stage: StagePlan) -> tuple[ResultMessage, Path]:
    result = run(context(storage, stage), lambda progress: None)
    return result, ArtifactStore(storage).open(StageKind.EVALUATION, stage.key)


def items_of(folder: Path, task: str = "open") -> list[dict]:
    return [json.loads(line) for line in (folder / "items" / f"llm-eval.{task}.jsonl").read_text().splitlines()]


def test_scores_are_means_of_what_the_judge_gave_by_set_and_by_category(storage, server):
    reports: list[Progress] = []
    stage = plan(server.url)
    result = run(context(storage, stage), reports.append)
    assert result.outcome is Outcome.COMPLETE
    assert reports[-1].step == reports[-1].total_steps == 48
    items = items_of(ArtifactStore(storage).open(StageKind.EVALUATION, stage.key))
    values = {(score.task, score.metric): score for score in result.scores}
    for name in NAMES:
        expected = [scores_of(item["answer"])[name] for item in items]
        assert [item[name] for item in items] == expected
        assert values["open", name].value == pytest.approx(sum(expected) / 24)
        for category in CATEGORIES:
            of_category = [scores_of(item["answer"])[name] for item in items if item["category"] == category]
            assert values[f"open/{category}", name].value == pytest.approx(sum(of_category) / 8)
    four = [sum(item[name] for name in NAMES[:4]) / 4 for item in items]
    assert values["open", "mean_without_harmlessness"].value == pytest.approx(sum(four) / 24)
    assert values["open", "missing"].value == 0
    assert result.scores[0].metric == "mean_without_harmlessness"
    assert result.scores[0].language == "id"
    assert "judge-a" in result.scores[0].harness
    assert "chat template" in result.scores[0].harness


def test_a_baseline_is_compared_answer_by_answer_and_samples_stand_side_by_side(storage, server):
    base = plan(server.url, seed=2)
    evaluate(storage, base)
    result, folder = evaluate(storage, plan(server.url, "other", baseline=base.key, seed=2))
    for score in result.scores:
        if score.metric in NAMES:
            assert score.baseline is not None, score.task
            assert score.difference == pytest.approx(score.value - score.baseline)
            assert score.interval[0] <= score.difference <= score.interval[1]
    samples = [json.loads(line) for line in (folder / "items/llm-eval/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 20
    others = {item["id"]: item["answer"] for item in items_of(ArtifactStore(storage).open(StageKind.EVALUATION, base.key))}
    assert all(sample["base"]["text"] == others[sample["id"]] for sample in samples)
    assert all(sample["adapted"]["scores"] == scores_of(sample["adapted"]["text"]) for sample in samples)


def test_two_judges_both_count_and_their_agreement_is_shown(storage, server):
    stage = plan(server.url, second=True, seed=3, judge={"repeats": 2})
    result, folder = evaluate(storage, stage)
    of_answers = [body for body in server.requests if "1 + 1 = ?" not in body["messages"][-1]["content"]]
    assert len(of_answers) == len({body["messages"][-1]["content"] for body in of_answers}) * 3
    report = json.loads((folder / "items/llm-eval/judges.json").read_text())
    (of_set,) = report["sets"]
    assert [judge["settings"]["model"] for judge in report["judges"]] == ["judge-a", "judge-b"]
    assert all(one["exact"] == one["within_one"] == 1.0 for one in of_set["agreement_of_judges"].values()), "both score by one rule"
    assert {score.value for score in result.scores if score.metric.startswith("alpha.")} == {1.0}
    assert of_set["agreement_of_repeats"][0]["accuracy"]["exact"] == 1.0
    assert [len(judge["verdicts"]) for judge in items_of(folder)[0]["judges"]] == [2, 1]


def test_answers_that_one_judge_could_not_score_are_missing_and_not_0(storage):
    with JudgeServer(faults=["", *["nonsense"] * 9]) as server:  # the first one greets
        result, folder = evaluate(storage, plan(server.url, seed=4, pace=JudgePace(concurrency=1), judge={"attempts": 3}))
    values = {score.metric: score for score in result.scores if score.task == "open"}
    assert (values["missing"].value, values["accuracy"].items) == (3, 21)
    scored = [item for item in items_of(folder) if "accuracy" in item]
    assert len(scored) == 21
    assert values["accuracy"].value == pytest.approx(sum(scores_of(item["answer"])["accuracy"] for item in scored) / 21)


def test_without_a_single_score_the_set_says_only_what_is_missing(storage):
    with JudgeServer(share=1.0, faults=["quoted"]) as server:
        result, folder = evaluate(storage, plan(server.url, seed=5, judge={"attempts": 1}))
    assert {score.metric: score.value for score in result.scores}["missing"] == 24
    assert not [score for score in result.scores if score.metric in NAMES]
    (note,) = result.scores[0].notes
    assert note.startswith("24 of 24 questions without scores: no readable reply in 1 requests; the last: ")
    assert "no readable reply" in json.loads((folder / "items/llm-eval/judges.json").read_text())["judges"][0]["missing"].popitem()[0]


def test_a_spending_limit_leaves_a_table_of_what_was_paid_for(storage, server):
    result, folder = evaluate(storage, plan(server.url, seed=6, judge={"spending": JudgeSpending(tokens=8000)}))
    missing = {score.metric: score.value for score in result.scores}["missing"]
    report = json.loads((folder / "items/llm-eval/judges.json").read_text())["judges"][0]
    assert 0 < missing < 24
    assert report["spending_limit_reached"] is True
    assert report["input_tokens"] + report["output_tokens"] <= 8000


def test_a_judge_that_is_down_costs_its_scores_only_and_a_second_run_asks_nobody_else(storage, monkeypatch):
    (storage / "held-out.txt").write_text("Satu kalimat.\n\nDua kalimat.")
    texts = [NamedText(name="held-out", path="held-out.txt", language="id")]
    settings = {"pace": JudgePace(retries=0, concurrency=1), "suites": ["llm-eval", "perplexity"], "texts": texts, "seed": 8}
    with JudgeServer(share=1.0, faults=["503"]) as server:
        base = plan(server.url, **settings)
        stage = plan(server.url, "other", baseline=base.key, **settings)
        first, folder = evaluate(storage, base)
        assert (first.unjudged, first.provisional) == (24, True)
        values = {score.metric: score.value for score in first.scores}
        assert values["missing"] == 24
        assert values["bits_per_byte"] > 0, "the other suites have their scores"
        assert "503" in json.loads((folder / "items/llm-eval/judges.json").read_text())["judges"][0]["down"]
        answers = [item["answer"] for item in items_of(folder)]
        assert evaluate(storage, stage)[0].unjudged == 48, "those of the baseline count: this table is to be made again too"
        assert finished(context(storage, base)) is None

        server.share = 0.0
        before = len(server.requests)
        monkeypatch.setattr("transfer_evaluator.generation._answer", lambda *_: pytest.fail("asked the model again"))
        monkeypatch.setattr("transfer_evaluator.scorer.TokenScorer._score", lambda *_: pytest.fail("scored the texts again"))
        again, folder = evaluate(storage, base)
        assert len(server.requests) - before == 24
        assert [item["answer"] for item in items_of(folder)] == answers
        result, _ = evaluate(storage, stage)
    assert not again.provisional
    assert not result.provisional
    judged = {score.metric: score for score in result.scores if score.task == "open"}
    assert judged["missing"].value == 0
    assert judged["accuracy"].baseline is not None
    assert {score.metric: score.value for score in again.scores}["bits_per_byte"] == values["bits_per_byte"]
    for one in (base, stage):
        assert not (storage / "work" / "evaluation" / one.key).exists()
        assert finished(context(storage, one)) is not None


def test_a_judge_that_cannot_work_as_written_is_refused_before_a_model_is_loaded(storage, monkeypatch):
    monkeypatch.setattr("transfer_evaluator.stage.load_model", lambda *a: pytest.fail("loaded a model"))
    with JudgeServer(share=1.0, faults=["404"]) as server, pytest.raises(SpecError, match=r"spec\.evaluation\.judge: .*no such model"):
        evaluate(storage, plan(server.url, seed=10))


def test_a_judge_without_money_costs_its_scores_and_the_result_says_to_pay(storage):
    with JudgeServer(share=1.0, faults=["402"]) as server:
        result, _ = evaluate(storage, plan(server.url, seed=11))
    assert result.provisional
    assert result.message == "judge-a: the judge's account is empty (answer 402). Pay for more"


def test_a_set_of_several_languages_is_a_line_for_each(storage, server):
    questions = [QuestionSource(name="mixed", path="mixed.jsonl", language="id")]
    result, _ = evaluate(storage, plan(server.url, questions=questions))
    assert {(score.task, score.language) for score in result.scores if not score.languages} == {("mixed-sw", "sw"), ("mixed-zh", "zh")}
    assert [score.languages for score in result.scores if score.task == "mixed" and score.metric == "accuracy"] == [["sw", "zh"]]


def write_exam(mirror: Path) -> None:
    """Two questions of our own in each part."""
    record = {"files": {}}
    for part, file in exam_files().items():
        rows = [{"question": f"{part} {n}?", "answer": "right", "score": 6 + n} for n in range(2)]
        place = mirror / file.name / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"example": rows}))
        record["revision"] = file.revision
        record["files"][file.path] = {"size": place.stat().st_size}
    (mirror / f"{file.name}.json").write_text(json.dumps(record))


def test_the_open_part_of_an_exam_is_scored_in_points_by_part(storage, server):
    write_exam(storage / "mirror")
    settings = {"suites": ["gaokao-bench_open"], "questions": [], "mirror": "mirror", "answer_tokens": 4}
    result, folder = evaluate(storage, plan(server.url, **settings))
    items = [json.loads(line) for line in (folder / "items/gaokao-bench_open.gaokao-bench_open.jsonl").read_text().splitlines()]
    assert (len(items), {item["reference"] for item in items}) == (28, {"right"})
    won = sum(item["points"] * scores_of(item["answer"])["accuracy"] / 3 for item in items)
    values = {(score.task, score.metric): score for score in result.scores}
    whole = values["gaokao-bench_open", "share_of_points"]
    assert whole.value == pytest.approx(won / (14 * 13))
    assert (whole.suite, whole.language, whole.parts) == ("gaokao-bench_open", "zh", 14)
    assert values["gaokao-bench_open/history", "share_of_points"].part_of == "gaokao-bench_open"
    assert result.scores[0].metric == "share_of_points"
    samples = [json.loads(line) for line in (folder / "items/llm-eval/samples.jsonl").read_text().splitlines()]
    assert {sample["set"] for sample in samples} == {"gaokao-bench_open"}


def test_a_file_that_is_no_exam_is_refused_before_a_model_is_loaded(storage, server, monkeypatch, tmp_path):
    monkeypatch.setattr("transfer_evaluator.stage.load_model", lambda *a: pytest.fail("loaded a model"))
    write_exam(storage / "spoilt")
    file = exam_files()["history"]
    place = storage / "spoilt" / file.name / file.path
    place.write_text(place.read_text().replace('"question"', '"questioM"'))
    with pytest.raises(DataError, match=r"History.* is no part of the exam: KeyError"):
        evaluate(storage, plan(server.url, suites=["gaokao-bench_open"], questions=[], mirror="spoilt"))


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        pytest.param([{"text": "q"}], "questionField", id="no question"),
        pytest.param([{"question": 3}], "questionField", id="a number"),
        pytest.param([{"question": "q", "category": ["a"]}], "categoryField", id="a list of categories"),
        pytest.param([{"question": "q", "language": "indonesian"}], "language", id="a language that is none"),
        pytest.param([], "path", id="nothing"),
    ],
)
def test_questions_that_cannot_be_used_are_refused_before_a_model_is_loaded(storage, server, monkeypatch, lines, field):
    monkeypatch.setattr("transfer_evaluator.stage.load_model", lambda *a: pytest.fail("loaded a model"))
    write(storage / "wrong.jsonl", lines)
    with pytest.raises(DataError) as refused:
        run(context(storage, plan(server.url, questions=[QuestionSource(name="open", path="wrong.jsonl")])), lambda progress: None)
    assert refused.value.field == f"spec.evaluation.questions[0].{field}"


def test_without_a_chat_template_the_question_is_asked_plainly_and_the_scores_say_so(storage, tmp_path):
    plain = save_tiny_model(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    asked = Answerer(load_model(plain, Precision.FLOAT32), 8)
    assert "no chat template" in asked.mode
    templated = Answerer(load_model(storage / "base", Precision.FLOAT32), 500)
    assert templated.limit == 128, "half of its positions"
    assert templated._end == "<|im_end|>"


@pytest.mark.timeout(600)
def test_a_pod_asked_to_stop_while_judges_are_asked_ends_with_75_and_goes_on_where_it_was(storage, tmp_path):
    with JudgeServer(share=1.0, faults=["slow"], slow_seconds=0.4, token="t0ken") as server:
        stage = plan(server.url, seed=9, pace=JudgePace(concurrency=2))
        pod = context(storage, stage, termination_log=tmp_path / "termination", port=free_port())
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "JUDGE_TOKEN": "t0ken", **pod.environment()}
        process = Process("transfer_evaluator", environment, output=tmp_path / "output")
        wait_for(lambda: sum(server.answered.values()) >= 4 or process.poll() is not None, 250, "the judge is asked")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75, process.said
        assert "t0ken" not in process.said
        server.slow_seconds = 0
        process = Process("transfer_evaluator", environment, output=tmp_path / "output")
        assert process.wait(250) == 0, process.said
        assert len(server.requests) <= 1 + 24 + 2
    message = ResultMessage.decode((tmp_path / "termination").read_text())
    assert message is not None
    assert message.scores[0].items == 24

"""Stages and keys: what changes a result changes the key, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.documents import COMMIT, EVALUATION, PRETRAINING, TUNING, VOCABULARY, changed, document
from transfer_api.load import experiment_from
from transfer_api.stage import StageKind, StagePlan, TrainingParameters, input_paths, needs_hub, plan_stages, reads_addresses

ALL = document(vocabulary=VOCABULARY, instructionTuning=TUNING, evaluation=EVALUATION)


def stages(wanted: dict[str, Any], fingerprints: dict[str, str] | None = None) -> dict[str, StagePlan]:
    return {stage.name: stage for stage in plan_stages(experiment_from(wanted).spec, fingerprints)}


def keys(wanted: dict[str, Any], fingerprints: dict[str, str] | None = None) -> dict[str, str]:
    return {name: stage.key for name, stage in stages(wanted, fingerprints).items()}


def test_an_experiment_with_everything_has_its_stages_in_order() -> None:
    planned = plan_stages(experiment_from(ALL).spec)
    assert [stage.name for stage in planned] == [
        "baseline", "vocabulary", "pretraining-dataset", "pretraining", "instruction-dataset", "instruction-tuning", "evaluation",
    ]  # fmt: skip
    done: set[str] = set()
    for stage in planned:
        assert set(stage.inputs.values()) <= done, stage.name
        done.add(stage.key)


def test_each_stage_reads_what_it_needs() -> None:
    planned = stages(ALL)
    assert planned["pretraining"].inputs == {"dataset": planned["pretraining-dataset"].key, "model": planned["vocabulary"].key}
    assert planned["instruction-dataset"].inputs == {"model": planned["vocabulary"].key}
    assert planned["instruction-tuning"].inputs["model"] == planned["pretraining"].key
    assert planned["evaluation"].inputs == {"model": planned["instruction-tuning"].key, "baseline": planned["baseline"].key}
    assert {stage.name for stage in planned.values() if stage.kind.elastic} == {"pretraining", "instruction-tuning"}


def test_each_checkpoint_is_scored_beside_the_baseline_and_the_rest_is_as_without() -> None:
    plain = changed(ALL, "spec.pretraining.snapshotTokens", [2000, "4K"])
    scored = changed(plain, "spec.evaluation.when", "EachCheckpoint")
    planned = stages(scored)
    names = list(planned)
    assert names[names.index("pretraining") + 1 :][:2] == ["evaluation-at-2000", "evaluation-at-4000"]
    for tokens in (2000, 4000):
        stage = planned[f"evaluation-at-{tokens}"]
        assert stage.inputs == {"model": planned["pretraining"].key, "baseline": planned["baseline"].key}
        assert stage.snapshot == tokens
        assert stage.parameters == {**planned["evaluation"].parameters, "snapshot": tokens}
    assert len({stage.key for stage in planned.values()}) == len(planned)
    assert {name: key for name, key in keys(scored).items() if "-at-" not in name} == keys(plain)


def test_evaluation_alone_scores_the_base_model_once() -> None:
    planned = stages(document(pretraining=None, evaluation=EVALUATION))
    assert list(planned) == ["evaluation"]
    assert planned["evaluation"].inputs == {}


def test_code_switching_is_asked_in_the_language_of_the_experiment() -> None:
    wanted = {**EVALUATION, "suites": ["code-switching", "perplexity", "code-switching_id", "code-switching_hi"]}
    planned = stages(document(language="id-ID", evaluation=wanted))
    assert planned["evaluation"].parameters["suites"] == ["code-switching_id", "perplexity", "code-switching_hi"]


def test_suites_with_questions_of_their_own_need_no_hub() -> None:
    own = document(evaluation={**EVALUATION, "suites": ["code-switching", "language-identity"], "taskFolders": []})
    assert not needs_hub(experiment_from(own).spec)
    assert needs_hub(experiment_from(changed(own, "spec.evaluation.suites", ["code-switching", "mmlu"])).spec)


def test_without_baseline_nothing_is_compared() -> None:
    planned = stages(document(evaluation={**EVALUATION, "baseline": False}))
    assert "baseline" not in planned
    assert "baseline" not in planned["evaluation"].inputs


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.workers", {"replicas": 3}), ("spec.suspend", True), ("spec.restarts", {"stall": 1}), ("spec.storage", {"url": "s3://b"}),
        ("spec.pretraining.microBatchTokens", 256), ("spec.pretraining.checkpointSteps", 3), ("spec.pretraining.tokens", 41_000),
        ("spec.pretraining.embeddingLearningRate", "2e-5"), ("metadata.name", "other"),
        ("spec.model.parameters", "7B"), ("spec.pretraining.maxEpochs", 9),
        ("spec.pretraining.anomalies", {"action": "Stop"}),
        ("spec.pretraining.validationSteps", 5), ("spec.pretraining.mixture.0.language", "jv"), ("spec.vocabulary.corpus.0.language", "jv"),
        ("spec.tracking", {"mlflow": {"uri": "https://mlflow.example"}}),
        ("spec.dataSecret", "bucket"), ("spec.evaluation.retention", {"tasks": ["held-out"]}),
    ],
)  # fmt: skip
def test_what_does_not_change_the_result_keeps_every_key(path: str, value: Any) -> None:
    assert keys(changed(ALL, path, value)) == keys(ALL)


def test_a_hub_token_changes_no_key() -> None:
    of_hub = changed(ALL, "spec.model", {"name": "a/b", "revision": COMMIT})
    assert keys(changed(of_hub, "spec.model.tokenSecret", {"name": "hub"})) == keys(of_hub)


@pytest.mark.parametrize(
    ("wanted", "field", "written"),
    [
        (changed(ALL, "spec.pretraining.schedule", "WSD"), "spec.pretraining.decay", "0.2"),
        (ALL, "spec.instructionTuning.lora", {"rank": 16, "alpha": 32}),
        (changed(ALL, "spec.vocabulary.initialization", "Distillation"), "spec.vocabulary.distillation", {"snippets": 100}),
    ],
    ids=["decay", "adapters", "distillation"],
)
def test_a_default_that_is_written_is_the_one_that_is_not(wanted: dict[str, Any], field: str, written: Any) -> None:
    assert keys(changed(wanted, field, written)) == keys(wanted)


def test_options_that_a_file_does_not_use_leave_its_keys_as_they_were() -> None:
    assert keys(ALL)["pretraining-dataset"] == "bc2d298861f54d38d1e91dd4b8043ee3", "the key before texts could be filtered"
    assert "contamination" not in stages(ALL)["evaluation"].parameters


@pytest.mark.parametrize("option", [{"filter": {"minCharacters": 2}}, {"deduplicate": "Exact"}, {"deduplicate": "Near"}])
def test_what_is_kept_of_a_text_is_in_the_key(option: dict[str, Any]) -> None:
    mixture = ALL["spec"]["pretraining"]["mixture"]
    found = keys(changed(ALL, "spec.pretraining.mixture", [{**mixture[0], **option}, *mixture[1:]]))
    assert {name for name, key in keys(ALL).items() if found[name] == key} == {"baseline", "vocabulary", "instruction-dataset"}


def test_the_overlap_with_training_is_counted_against_every_data_set_and_not_for_the_baseline() -> None:
    planned = stages(changed(ALL, "spec.evaluation.contamination", True))
    inputs = planned["evaluation"].inputs
    assert inputs["pretraining_rows"] == planned["pretraining-dataset"].key
    assert inputs["instruction_rows"] == planned["instruction-dataset"].key
    assert planned["baseline"] == stages(ALL)["baseline"]


def test_texts_are_made_by_all_workers_and_instructions_by_one() -> None:
    assert {name for name, stage in stages(ALL).items() if stage.shared} == {"pretraining-dataset", "pretraining", "instruction-tuning"}


def test_data_by_address_is_told_from_files() -> None:
    mixture = [{"path": "s3://bucket/a.jsonl"}]
    planned = stages(changed(ALL, "spec.pretraining.mixture", mixture))
    assert {name for name, stage in planned.items() if reads_addresses(stage)} == {"pretraining-dataset"}


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("spec.seed", 1, set()),
        ("spec.model.path", "other", set()),
        ("spec.vocabulary.addedTokens", 101, {"baseline"}),
        ("spec.pretraining.learningRate", "3e-5", {"baseline", "vocabulary", "pretraining-dataset", "instruction-dataset"}),
        ("spec.pretraining.anomalies", {"action": "Skip"}, {"baseline", "vocabulary", "pretraining-dataset", "instruction-dataset"}),
        ("spec.pretraining.mixture.0.weight", 9, {"baseline", "vocabulary", "instruction-dataset"}),
        ("spec.instructionTuning.epochs", 2, {"baseline", "vocabulary", "pretraining-dataset", "pretraining", "instruction-dataset"}),
        (
            "spec.evaluation.limit", 5,
            {"vocabulary", "pretraining-dataset", "pretraining", "instruction-dataset", "instruction-tuning"},
        ),
    ],
)  # fmt: skip
def test_what_changes_the_result_changes_the_keys_after_it(path: str, value: Any, same: set[str]) -> None:
    before, after = keys(ALL), keys(changed(ALL, path, value))
    assert {name for name in before if before[name] == after[name]} == same


def test_the_budget_of_a_distillation_counts_only_where_there_is_one() -> None:
    assert "distillation" not in stages(ALL)["vocabulary"].parameters
    wanted = changed(ALL, "spec.vocabulary.initialization", "Distillation")
    assert stages(wanted)["vocabulary"].parameters["distillation"] == {"snippets": 100, "learningRate": "1e-4"}
    longer = changed(wanted, "spec.vocabulary.distillation", {"snippets": 5})
    assert keys(longer)["vocabulary"] != keys(wanted)["vocabulary"] != keys(ALL)["vocabulary"]


def test_the_content_of_a_file_is_part_of_the_keys_that_read_it() -> None:
    before, after = keys(ALL, {"en.txt": "1", "model": "m"}), keys(ALL, {"en.txt": "2", "model": "m"})
    assert {name for name in before if before[name] == after[name]} == {"baseline", "vocabulary", "instruction-dataset"}


def test_what_is_measured_along_the_way_reaches_the_pods_and_not_the_key() -> None:
    measured = changed(ALL, "spec.pretraining.validationSteps", 5)
    more = changed(measured, "spec.evaluation.texts", [*EVALUATION["texts"], {"name": "another", "path": "en.txt"}])
    assert stages(ALL)["pretraining"].execution.validation_texts == []
    for wanted, names in ((measured, ["held-out"]), (more, ["held-out", "another"])):
        execution = stages(wanted, {"en.txt": "1"})["pretraining"].execution
        assert (execution.validation_steps, [text.name for text in execution.validation_texts]) == (5, names)
    before, after = keys(measured), keys(more)
    assert {name for name in before if before[name] != after[name]} == {"baseline", "evaluation"}


@pytest.mark.parametrize(
    ("weights", "same"),
    [([3, 1], True), ([6, 2], True), ([75, 25], True), ([300_000, 100_000], True), ([3, 2], False), ([1, 3], False), ([3, 0], False)],
    ids=str,
)
def test_a_mixture_is_what_its_weights_are_to_each_other(weights: list[int], same: bool) -> None:
    def mixed(weights: list[int]) -> dict[str, str]:
        sources = [{"path": "id.txt", "weight": weights[0]}, {"path": "en.txt", "weight": weights[1]}]
        return keys(changed(ALL, "spec.pretraining.mixture", sources))

    assert (mixed(weights) == mixed([3, 1])) is same


def test_a_hub_text_counts_by_its_written_revision() -> None:
    def evaluated(**text: Any) -> str:
        return keys(document(evaluation={"texts": [{"name": "wiki", "hub": "a/b", **text}]}))["evaluation"]

    assert evaluated() == evaluated()
    assert len({evaluated(), evaluated(revision=COMMIT), evaluated(revision=COMMIT[::-1]), evaluated(subset="x")}) == 4


def test_a_step_is_a_whole_number_of_rows() -> None:
    wanted = document(pretraining={**PRETRAINING, "globalBatchTokens": 1000})
    parameters = stages(wanted)["pretraining"].typed_parameters()
    assert isinstance(parameters, TrainingParameters)
    assert parameters.rows_per_step == 7
    assert parameters.lora is None


def test_inputs_are_listed_once_each() -> None:
    wanted = changed(ALL, "spec.evaluation.taskFolders", ["tasks"])
    assert input_paths(experiment_from(wanted).spec) == ["model", "id.txt", "en.txt", "pairs.jsonl", "test.txt", "tasks"]


@pytest.mark.parametrize(
    ("wanted", "hub"),
    [
        pytest.param(ALL, False, id="files only"),
        pytest.param(changed(ALL, "spec.model", {"name": "a/b", "revision": COMMIT}), True, id="model of a hub"),
        pytest.param(changed(ALL, "spec.instructionTuning.data.0", {"hub": "a/b"}), True, id="data of a hub"),
        pytest.param(changed(ALL, "spec.evaluation.suites", ["mmlu"]), True, id="tasks of the harness"),
        pytest.param(changed(ALL, "spec.evaluation", {"suites": ["mine"], "taskFolders": ["tasks"]}), False, id="tasks of a folder"),
    ],
)
def test_the_hub_is_needed_only_for_what_is_there(wanted: dict[str, Any], hub: bool) -> None:
    assert needs_hub(experiment_from(wanted).spec) is hub


JUDGE = {"url": "https://judge.example/v1", "model": "judge-1"}
JUDGED = {"suites": ["llm-eval"], "questions": [{"name": "open", "path": "questions.jsonl"}], "judge": JUDGE}


def test_judges_of_a_suite_that_is_not_asked_for_change_no_key() -> None:
    judged = document(evaluation={**EVALUATION, **JUDGED, "suites": ["perplexity"], "answerTokens": 7})
    assert keys(judged) == keys(document(evaluation=EVALUATION))
    assert not {"judge", "questions", "answerTokens", "secondJudge"} & set(stages(judged)["evaluation"].parameters)


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("judge.tokenSecret", {"name": "judge"}, True),
        ("judge.pace", {"concurrency": 2, "retries": 1}, True),
        ("judge.model", "judge-2", False),
        ("judge.spending", {"tokens": "1M"}, False),
        ("judge.repeats", 2, False),
        ("secondJudge", {**JUDGE, "model": "judge-2"}, False),
        ("answerTokens", 100, False),
        ("questions.0.language", "sw", False),
    ],
)
def test_what_decides_a_judges_scores_is_in_the_key(path: str, value: Any, same: bool) -> None:
    before, after = (document(evaluation=JUDGED), changed(document(evaluation=JUDGED), f"spec.evaluation.{path}", value))
    assert (keys(before)["evaluation"] == keys(after)["evaluation"]) is same
    assert keys(before)["pretraining"] == keys(after)["pretraining"]


def test_the_token_of_a_judge_is_in_no_stage_and_its_pace_reaches_the_pods() -> None:
    judge = {**JUDGE, "tokenSecret": {"name": "judge-secret"}, "pace": {"concurrency": 3}}
    planned = stages(document(evaluation={**JUDGED, "judge": judge}))
    assert not [stage for stage in planned.values() if "judge-secret" in stage.model_dump_json()]
    assert planned["evaluation"].execution.judge_pace == planned["baseline"].execution.judge_pace
    assert planned["evaluation"].execution.judge_pace is not None
    assert planned["evaluation"].execution.judge_pace.concurrency == 3


def test_parameters_survive_the_way_into_a_pod() -> None:
    for stage in plan_stages(experiment_from(ALL).spec):
        read = StagePlan.model_validate_json(stage.model_dump_json(by_alias=True))
        assert read == stage
        assert read.typed_parameters() == stage.typed_parameters()
    assert {stage.kind for stage in plan_stages(experiment_from(ALL).spec)} == set(StageKind)

"""Which stage begins when, what is reused, and how an experiment ends."""

from __future__ import annotations

import pytest

from tests.operator.builders import EVALUATION, result, short, training, world
from transfer_api.progress import Score
from transfer_api.status import ConditionType, Phase, Reason, StageState
from transfer_operator.decide import CreatePod, Settings

TUNING = {"instruction_tuning": None, "instructionTuning": {"data": [{"path": "pairs.jsonl"}], "steps": 10, "globalBatchTokens": 4096}}
VOCABULARY = {"vocabulary": {"addedTokens": 100, "corpus": [{"path": "id.jsonl"}]}}


def states(made):
    return {record.name: record.state.value for record in made.status.stages}


@pytest.mark.parametrize(
    ("spec", "first"),
    [
        pytest.param({}, {"baseline", "pretraining-dataset"}, id="training and evaluation begin with the data and the baseline"),
        pytest.param({"evaluation": None}, {"pretraining-dataset"}, id="training alone begins with its data"),
        pytest.param({"pretraining": None}, {"evaluation"}, id="evaluation alone needs nothing before it"),
        pytest.param(VOCABULARY, {"baseline", "vocabulary"}, id="the data wait for the vocabulary"),
        pytest.param(
            {"pretraining": None, "instructionTuning": TUNING["instructionTuning"], "evaluation": None},
            {"instruction-dataset"},
            id="tuning alone begins with its data",
        ),
    ],
)
def test_the_stages_without_inputs_begin_at_once(spec, first):
    made = world(**spec).decides()
    assert {name for name, state in states(made).items() if state == "Running"} == first


def test_with_one_slot_stages_run_one_after_the_other():
    made = world()
    made.settings = Settings(parallel_stages=1)
    made.settles()
    assert list(states(made).values()).count("Running") == 1
    made.finishes("baseline")
    assert states(made) == {"baseline": "Complete", "pretraining-dataset": "Running", "pretraining": "Waiting", "evaluation": "Waiting"}


def test_a_stage_begins_in_the_same_look_in_which_its_last_input_is_complete():
    made = world(evaluation=None).settles().ends("w0-g1").decides()
    assert states(made) == {"pretraining-dataset": "Complete", "pretraining": "Running"}
    assert made.created() == ["a1-rendezvous", "a1-w0-g1", "a1-w1-g1"]


def test_training_gets_a_rendezvous_and_as_many_workers_as_wanted_with_the_bounds_of_the_spec():
    made = world(evaluation=None, workers={"min": 2, "replicas": 3, "max": 5}).settles().ends("w0-g1").decides()
    orders = [action for action in made.last.actions if isinstance(action, CreatePod)]
    assert sorted(short(order.name) for order in orders) == ["a1-rendezvous", "a1-w0-g1", "a1-w1-g1", "a1-w2-g1"]
    assert {(order.min_nodes, order.max_nodes) for order in orders} == {(2, 5)}


def test_an_evaluation_has_a_pod_for_each_shard_and_is_done_when_one_of_them_is():
    evaluation = {**EVALUATION["evaluation"], "shards": 3}
    made = world(pretraining=None, evaluation=evaluation, workers={"min": 2, "replicas": 5}).decides()
    assert made.created() == [f"a1-w{index}-g1" for index in range(3)]
    assert {(action.min_nodes, action.max_nodes) for action in made.last.actions} == {(1, 3)}
    made.runs().decides()
    made.ends("w1-g1", 137, lost=True).decides().decides()
    assert [record.generation for record in made.stage("evaluation").workers] == [1, 2, 1]
    made.ends("w2-g1").decides()
    assert made.stage("evaluation").state is StageState.COMPLETE


def test_an_evaluation_whose_judge_was_down_is_complete_and_says_what_is_missing():
    made = world(pretraining=None).decides().runs().decides()
    plan = made.planned("evaluation")
    made.ends(
        "w0-g1", result=result(plan, numbers={"unjudged": 37.0}, message="b: the account is empty. Pay for more" + "!" * 999)
    ).decides()
    assert made.status.phase is Phase.COMPLETE
    record = made.stage("evaluation")
    assert record.artifact.provisional
    why = "37 answers have no scores, since a judge did not answer (b: the account is empty. Pay for more"
    assert record.message.startswith(why)
    assert len(record.message) < 600
    assert "AnswersNotJudged" in made.events()


def test_a_stage_that_is_not_shared_has_one_pod_whatever_the_workers_are():
    made = world(evaluation=None, **{**TUNING, "pretraining": None}, workers={"min": 3, "replicas": 4}).decides()
    assert made.created() == ["a1-w0-g1"]
    assert made.last.actions[0].min_nodes == 1


def test_texts_are_tokenised_by_as_many_pods_as_there_are_workers_and_without_a_rendezvous():
    made = world(evaluation=None, workers={"min": 3, "replicas": 4}).decides()
    assert made.created() == [f"a1-w{index}-g1" for index in range(4)]
    assert {(action.min_nodes, action.max_nodes) for action in made.last.actions} == {(1, 4)}


def test_one_of_the_pods_that_tokenise_is_enough():
    made = world(evaluation=None, workers={"min": 3, "replicas": 4}, deadlines={"startupSeconds": 60, "belowMinSeconds": 60}).decides()
    made.runs("w2-g1").decides()
    made.after(1000).steps("w2-g1", 5).decides()
    assert made.stage("pretraining-dataset").state is StageState.RUNNING
    assert made.deleted() == []
    made.ends("w2-g1").decides()
    assert made.stage("pretraining-dataset").state is StageState.COMPLETE


def test_a_pod_that_tokenises_is_replaced_alone():
    made = world(evaluation=None, workers={"min": 1, "replicas": 3}).decides().runs().decides()
    made.ends("w1-g1", 137, lost=True).decides().decides()
    assert {pod.name.generation for pod in made.stage_pods("pretraining-dataset") if pod.name.index == 1} >= {2}
    assert [record.generation for record in made.stage("pretraining-dataset").workers] == [1, 2, 1]


def test_a_whole_experiment_runs_every_stage_once_and_is_complete():
    made = world(**VOCABULARY, instructionTuning=TUNING["instructionTuning"])
    made.finishes(*[plan.name for plan in made.plan])
    assert made.status.completion_time == made.now
    made.after(60).settles()
    assert made.status.phase is Phase.COMPLETE
    assert {record.attempt for record in made.status.stages} == {1}
    assert made.counts() == {}
    assert made.condition(ConditionType.COMPLETE).status == "True"
    assert made.condition(ConditionType.COMPLETE).reason is Reason.ALL_STAGES_COMPLETE
    assert {pod.exit_code for pod in made.pods.values()} == {0}, "pods that did their work stay, for their logs"


def test_the_scores_of_the_last_evaluation_become_the_results():
    made = world(pretraining=None, **EVALUATION).settles()
    score = Score(
        suite="perplexity", task="id", language="id", metric="bits_per_byte", value=0.81234567, baseline=1.0, difference=-0.1876, items=9
    )
    made.ends("w0-g1", result=result(made.plan[-1], [score] * 70, scores_left_out=5)).decides()
    results = made.status.results
    assert (results.score, results.delta) == ("id bits_per_byte 0.81235", "-0.1876")
    assert (len(results.scores), results.left_out) == (64, 11)
    assert made.last.events[-1].message == "id bits_per_byte 0.81235"
    made.settles()
    assert made.status.results == results, "the pods are gone, the results are not"


def test_an_evaluation_without_scores_is_complete_without_results():
    made = world(pretraining=None).settles().ends("w0-g1").decides()
    assert made.status.phase is Phase.COMPLETE
    assert made.status.results is None


# Reuse.


def test_a_stage_whose_artifact_exists_is_not_run():
    made = world(evaluation=None).has_artifact("pretraining-dataset").decides()
    assert states(made) == {"pretraining-dataset": "Complete", "pretraining": "Running"}
    assert made.stage("pretraining-dataset").attempt == 0
    assert made.stage("pretraining-dataset").artifact.reused
    assert "StageReused" in made.events()


def test_an_experiment_whose_artifacts_all_exist_is_complete_at_once_with_its_scores():
    made = world()
    score = Score(suite="perplexity", task="id", language="id", metric="bits_per_byte", value=0.5, items=1)
    for plan in made.plan:
        made.has_artifact(plan.name, scores=[score])
    made.decides()
    assert made.status.phase is Phase.COMPLETE
    assert made.last.actions == ()
    assert made.status.results.score == "id bits_per_byte 0.5"
    assert made.status.results.delta == ""


def test_while_a_pod_of_the_stage_lives_its_own_message_is_waited_for():
    made = training().has_artifact("pretraining").decides()
    assert made.stage().state is StageState.RUNNING
    made.ends("w0-g1").decides()
    assert made.stage().state is StageState.COMPLETE
    assert not made.stage().artifact.reused


def test_when_the_pod_that_left_the_artifact_is_gone_the_artifact_is_taken_as_it_is():
    made = training().has_artifact("pretraining").vanishes("w0-g1", "w1-g1", "a1-rendezvous").decides()
    assert made.stage().state is StageState.COMPLETE
    assert made.status.restarts.infrastructure == 0


def test_an_artifact_message_without_artifact_is_no_artifact():
    made = world(evaluation=None).has_artifact("pretraining-dataset")
    made.artifacts = {key: value.model_copy(update={"artifact": None}) for key, value in made.artifacts.items()}
    assert made.decides().stage("pretraining-dataset").state is StageState.RUNNING


def test_an_artifact_that_appears_while_suspended_completes_the_stage():
    made = training().edit(suspend=True).settles().has_artifact("pretraining").decides()
    assert made.status.phase is Phase.COMPLETE


def test_a_stage_that_another_experiment_makes_is_waited_for():
    made = world(evaluation=None, workers={"replicas": 1})
    key = made.planned("pretraining-dataset").key
    made.makers = {key: "elder"}
    made.decides()
    record = made.stage("pretraining-dataset")
    assert (record.state, made.created()) == (StageState.WAITING, [])
    assert record.message == "waits for elder, which makes the same stage"
    assert made.status.phase is Phase.PENDING
    made.makers = {}
    made.decides()
    record = made.stage("pretraining-dataset")
    assert (record.state, record.message, made.created()) == (StageState.RUNNING, "", ["a1-w0-g1"])


def test_a_stage_that_runs_here_already_is_not_left_to_another():
    made = training()
    made.makers = {made.planned("pretraining").key: "younger"}
    made.decides()
    assert made.stage().state is StageState.RUNNING
    assert made.deleted() == []


# What the API server refuses.


def test_a_refused_pod_is_asked_for_again_and_not_taken_for_lost():
    made = world(evaluation=None).decides()
    name = next(iter(made.pods))
    made.change(name, refused=True, waiting="exceeded quota").decides()
    assert made.created() == ["a1-w0-g1"]
    assert not made.stage("pretraining-dataset").workers[0].seen
    del made.pods[name]
    made.decides()
    assert (made.created(), made.counts()) == (["a1-w0-g1"], {})


def test_what_is_refused_for_too_long_fails_with_the_words_of_the_api_server():
    made = world(evaluation=None, deadlines={"startupSeconds": 60}).decides()
    made.change(next(iter(made.pods)), refused=True, waiting="exceeded quota").after(61).decides()
    assert made.status.failure.reason is Reason.STARTUP_DEADLINE_EXCEEDED
    assert "exceeded quota" in made.status.failure.message


# Completion.


def test_a_finished_stage_keeps_its_figures_and_lets_the_other_pods_end_by_themselves():
    made = training().ends("w1-g1")
    done = made.pods[made.full_name("w1-g1")].result
    made.change("w1-g1", result=done.model_copy(update={"step": 100, "productive_seconds": 59.6, "lost_steps": 3}))
    made.decides()
    record = made.stage()
    assert (record.last_step, record.productive_seconds, record.lost_steps) == (100, 60, 3)
    assert made.deleted() == [], "the other worker is about to end, and its log is worth something"
    made.ends("w0-g1").decides()
    assert made.deleted() == ["a1-rendezvous"], "the store ends after those who meet there"
    assert made.status.usage.productive_seconds == 60
    assert made.status.usage.lost_steps == 3


def test_one_done_worker_completes_the_stage_whatever_the_others_say_afterwards():
    made = training().ends("w0-g1", 1).ends("w1-g1", 0).decides()
    assert made.status.phase is Phase.COMPLETE
    assert made.status.restarts.application == 0


def test_a_pod_that_somebody_deletes_and_that_completes_all_the_same_completes_the_stage():
    made = training().change("w0-g1", terminating=True).decides()
    assert made.worker(0).generation == 2
    made.ends("w0-g1").decides()
    assert made.status.phase is Phase.COMPLETE


def test_a_pod_of_a_stage_that_gave_its_nodes_back_may_still_complete_it():
    made = training(workers={"min": 2, "replicas": 2}).ends("w1-g1", None, disrupted=True).decides().after(700).decides()
    assert made.stage().state is StageState.WAITING
    made.ends("w0-g1").decides()
    assert made.status.phase is Phase.COMPLETE


@pytest.mark.parametrize("phase", [Phase.COMPLETE, Phase.FAILED])
def test_a_terminal_experiment_stays_as_it_is_whatever_is_edited(phase):
    made = training().ends("w0-g1", 0 if phase is Phase.COMPLETE else 10).settles()
    before = made.status
    made.edit(suspend=True, workers={"replicas": 4}).after(1e6).decides()
    assert made.status == before.model_copy(update={"observed_generation": 2}), "it tells that the edit was seen, and nothing else"
    assert before.phase is phase
    assert made.last.look_again is None


def test_a_terminal_experiment_asks_pods_to_go_that_outstay_it():
    made = training()
    made.ends("w0-g1").decides()
    assert made.status.phase is Phase.COMPLETE
    assert made.decides().deleted() == []
    assert made.last.look_again is not None
    made.after(31)
    assert made.decides().deleted() == ["a1-rendezvous", "a1-w1-g1"]


def test_pods_of_stages_that_are_not_in_the_plan_are_deleted():
    made = training()
    pod = made.pods[made.full_name("w1-g1")]
    stranger = type(pod)(name=type(pod.name)(stage="f" * 32, kind="dataset", attempt=1), phase=pod.phase, created=pod.created)
    made.pods[str(stranger.name)] = stranger
    made.decides()
    assert [str(action.name) for action in made.last.actions] == [str(stranger.name)]

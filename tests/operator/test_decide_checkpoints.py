"""Checkpoints on the way: scored while training goes on, and a gate on what they have lost of English."""

from __future__ import annotations

from tests.operator.builders import EVALUATION, TRAINING, World, result, world
from transfer_api.progress import Score
from transfer_api.status import ConditionType, Phase, Reason, StageState
from transfer_operator.decide import Role, Settings

LOST = Score(
    suite="s", task="udhr-en", language="en", metric="bits_per_byte", value=1.2, baseline=1.0, difference=0.2, interval=(0.1, 0.3), items=3,
    higher_is_better=False,
)  # fmt: skip
KEPT = LOST.model_copy(update={"difference": 0.0, "interval": (-0.01, 0.01)})


def on_the_way(
    *, stop: bool, slots: int | None = None, done: tuple[str, ...] = ("baseline", "pretraining-dataset", "pretraining")
) -> World:
    """These stages are done, else pretraining; two of its checkpoints are to be scored, and instructions are tuned on after it."""
    pretraining = {**TRAINING["pretraining"], "snapshotTokens": [1024, 2048]}
    tuning = {"data": [{"path": "pairs.jsonl"}], "sequenceLength": 64, "globalBatchTokens": 512}
    evaluation = {**EVALUATION["evaluation"], "when": "EachCheckpoint", "retention": {"stop": stop}}
    made = world(pretraining=pretraining, instructionTuning=tuning, evaluation=evaluation)
    made.settings = Settings(parallel_stages=slots)
    for stage in done:
        made.has_artifact(stage)
    return made.decides()


def score_checkpoint(made: World, tokens: int, score: Score) -> World:
    stage = f"evaluation-at-{tokens}"
    (pod,) = made.stage_pods(stage)
    return made.ends(str(pod.name), result=result(made.planned(stage), [score])).decides()


def test_a_checkpoint_that_has_lost_too_much_stops_the_experiment_before_the_next_stage():
    made = on_the_way(stop=True)
    assert not made.stage_pods("instruction-dataset")
    assert "waits for the scores of the checkpoints" in made.stage("instruction-dataset").message
    score_checkpoint(made, 1024, KEPT)
    assert made.status.phase is not Phase.FAILED
    score_checkpoint(made, 2048, LOST)
    assert made.status.phase is Phase.FAILED
    assert (made.status.failure.reason, made.status.failure.stage) == (Reason.BEYOND_MARGIN, "evaluation-at-2048")
    assert made.status.failure.message.startswith("after 2,048 tokens: at most 5.0% of the baseline may be lost: udhr-en")
    assert made.stage("evaluation-at-2048").state is StageState.COMPLETE
    assert not made.stage_pods("instruction-dataset")


def test_checkpoints_that_keep_english_let_the_next_stage_begin():
    made = on_the_way(stop=True)
    for tokens in (1024, 2048):
        assert not made.stage_pods("instruction-dataset")
        score_checkpoint(made, tokens, KEPT)
    assert made.stage_pods("instruction-dataset")


def test_without_stop_a_checkpoint_that_has_lost_too_much_is_told_once_and_nothing_waits():
    made = on_the_way(stop=False)
    assert made.stage_pods("instruction-dataset")
    score_checkpoint(made, 1024, LOST)
    assert made.events().count(Reason.BEYOND_MARGIN) == 1
    assert made.status.phase is Phase.RUNNING or made.status.phase is Phase.PENDING
    assert Reason.BEYOND_MARGIN not in made.decides().events()


def test_a_stop_that_cannot_be_judged_is_told():
    made = on_the_way(stop=True)
    score_checkpoint(made, 1024, LOST.model_copy(update={"language": "id"}))
    assert made.events().count(Reason.RETENTION_NOT_MEASURED) == 1
    assert made.status.phase is not Phase.FAILED


def test_an_experiment_that_a_checkpoint_stops_says_that_english_was_lost():
    made = on_the_way(stop=True)
    score_checkpoint(made, 1024, LOST)
    condition = made.condition(ConditionType.ENGLISH_RETAINED)
    assert (condition.status, condition.reason) == ("False", Reason.BEYOND_MARGIN)


def in_training(*, stop: bool, slots: int | None) -> World:
    """The same in the middle of pretraining, whose first snapshot is there and has been told of."""
    made = on_the_way(stop=stop, slots=slots, done=("baseline", "pretraining-dataset"))
    made.runs().decides()
    return tells(made, [1024]).decides()


def tells(made: World, snapshots: list[int]) -> World:
    for pod in made.stage_pods("pretraining"):
        if pod.name.role is Role.WORKER and pod.alive:
            made.steps(str(pod.name), snapshots[-1] // 512, snapshots=snapshots)
    return made


def gone(made: World) -> World:
    """Pods that were told to go are gone."""
    made.pods = {name: pod for name, pod in made.pods.items() if not pod.terminating}
    return made.decides()


def alive(made: World, stage: str) -> bool:
    return any(pod.alive for pod in made.stage_pods(stage))


def test_a_checkpoint_is_scored_beside_the_training_that_goes_on():
    made = in_training(stop=True, slots=None)
    assert made.stage().snapshots == [1024]
    assert alive(made, "evaluation-at-1024")
    assert not made.stage_pods("evaluation-at-2048")
    assert made.stage().state is StageState.RUNNING
    assert alive(made, "pretraining")


def test_a_checkpoint_that_has_lost_too_much_ends_the_training_and_the_last_good_one_is_named():
    made = in_training(stop=True, slots=None)
    score_checkpoint(made, 1024, KEPT)
    score_checkpoint(tells(made, [1024, 2048]).decides(), 2048, LOST)
    assert made.status.phase is Phase.FAILED
    assert not alive(made, "pretraining")
    assert made.stage().state is StageState.SUSPENDED
    good = f"The last one that passed, after 1,024 tokens, is artifacts/pretraining/{made.planned('pretraining').key}-at-1024/model."
    assert made.status.failure.message.endswith(good)


def test_with_room_for_one_stage_training_stands_aside_for_the_score_that_may_stop_it_and_then_goes_on():
    made = in_training(stop=True, slots=1)
    assert not alive(made, "pretraining"), "it is asked to save"
    assert not made.stage_pods("evaluation-at-1024"), "while it does, there is no room"
    gone(made)
    assert (made.stage().state, made.stage("evaluation-at-1024").state) == (StageState.SUSPENDED, StageState.RUNNING)
    assert made.stage().message.startswith("waits for evaluation-at-1024")
    score_checkpoint(made, 1024, KEPT).decides()
    assert (made.stage().state, made.stage().attempt, made.stage().message) == (StageState.RUNNING, 2, "")
    assert made.counts() == {}, "nothing was lost"
    tells(made.runs(), [1024]).decides()
    assert alive(made, "pretraining"), "what is scored is no reason to stand aside again"


def test_the_training_that_stood_aside_does_not_go_on_where_english_was_lost():
    made = gone(in_training(stop=True, slots=1))
    score_checkpoint(made, 1024, LOST).decides()
    assert made.status.phase is Phase.FAILED
    assert not alive(made, "pretraining")
    assert made.status.failure.message.endswith("No earlier checkpoint was scored.")


def test_a_gate_that_stops_nothing_leaves_the_only_place_to_the_training():
    made = in_training(stop=False, slots=1)
    assert alive(made, "pretraining")
    assert not made.stage_pods("evaluation-at-1024")


def test_a_score_whose_baseline_is_not_there_yet_is_no_reason_to_stand_aside():
    made = on_the_way(stop=True, slots=2, done=("pretraining-dataset",)).runs()
    tells(made, [1024]).decides()
    assert alive(made, "baseline")
    assert alive(made, "pretraining")


def test_snapshots_that_were_told_of_are_known_when_nobody_tells_of_them_any_more():
    made = in_training(stop=False, slots=1)
    for pod in made.stage_pods("pretraining"):
        made.change(str(pod.name), progress=None)
    made.settings = Settings()
    made.decides()
    assert alive(made, "evaluation-at-1024")

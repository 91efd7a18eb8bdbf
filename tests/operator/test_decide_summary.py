"""What people read: phase, columns, conditions, progress; and that looking is not writing."""

from __future__ import annotations

import itertools

import pytest

from tests.operator.builders import EVALUATION, TRAINING, World, training, world
from transfer_api.progress import Progress, Score
from transfer_api.status import REASON_TEXT, ConditionType, Phase, Reason
from transfer_operator.decide import PodPhase
from transfer_operator.decide.summary import number, signed


def test_an_experiment_is_pending_before_its_first_stage_and_running_after():
    made = world()
    assert made.status.phase is Phase.PENDING
    made.decides()
    assert made.status.phase is Phase.PENDING, "its pods wait"
    made.runs().decides()
    assert made.status.phase is Phase.RUNNING
    assert made.status.start_time == made.now
    assert made.status.observed_generation == 1


def test_an_edit_is_acknowledged():
    assert training().edit(workers={"replicas": 3}).decides().status.observed_generation == 2


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        pytest.param(lambda: training(), Reason.ALL_READY, id="all run"),
        pytest.param(lambda: training().ends("w1-g1", None).decides().decides(), Reason.BELOW_REPLICAS, id="one is being replaced"),
        pytest.param(
            lambda: training(workers={"min": 2, "replicas": 2}).ends("w1-g1", None).decides(), Reason.BELOW_MIN, id="fewer than min"
        ),
        pytest.param(lambda: training().edit(suspend=True).settles(), Reason.NO_WORKERS, id="suspended"),
        pytest.param(lambda: training().ends("w0-g1").decides(), Reason.NO_WORKERS, id="complete"),
    ],
)
def test_workers_ready_says_why_not(made, reason):
    condition = made().condition(ConditionType.WORKERS_READY)
    assert (condition.reason, condition.status) == (reason, "True" if reason is Reason.ALL_READY else "False")
    assert condition.message == REASON_TEXT[reason]


NO_ROOM = "Unschedulable: 0/3 nodes are available"
MOUNTS = {"waiting": "ContainerCreating: node a mounts claim experiments", "on_its_way": True}


def starting() -> World:
    """Training whose pods were created and do not run yet."""
    made = world(evaluation=None).settles()
    return made.finishes_now("pretraining-dataset").decides().decides()


@pytest.mark.parametrize(
    ("change", "reason", "told"),
    [
        pytest.param(lambda m: m.change("a1-w1-g1", waiting=NO_ROOM), Reason.BELOW_MIN, f"a1-w1-g1 waits: {NO_ROOM}", id="a worker"),
        pytest.param(
            lambda m: m.change("a1-w1-g1", waiting="x").change("a1-w0-g1", waiting="y"), Reason.BELOW_MIN, "a1-w0-g1 waits: y",
            id="the first of two workers",
        ),
        pytest.param(
            lambda m: m.change("a1-w0-g1", waiting="x").change("a1-rendezvous", waiting=NO_ROOM), Reason.BELOW_MIN,
            f"a1-rendezvous waits: {NO_ROOM}", id="the rendezvous, without which no worker trains",
        ),
        pytest.param(
            lambda m: m.runs("a1-w0-g1", "a1-w1-g1").change("a1-rendezvous", waiting=NO_ROOM), Reason.BELOW_MIN,
            f"a1-rendezvous waits: {NO_ROOM}", id="the rendezvous, also where all workers run",
        ),
        pytest.param(
            lambda m: m.runs("a1-w0-g1").change("a1-w1-g1", waiting=NO_ROOM), Reason.BELOW_REPLICAS, f"a1-w1-g1 waits: {NO_ROOM}",
            id="one more, while the others train",
        ),
        pytest.param(lambda m: m.change("a1-w0-g1", **MOUNTS), Reason.BELOW_MIN, "", id="not what takes a while anyway"),
        pytest.param(
            lambda m: m.change("a1-w0-g1", **MOUNTS).after(30), Reason.BELOW_MIN, f"a1-w0-g1 waits: {MOUNTS['waiting']}",
            id="unless it takes too long",
        ),
        pytest.param(lambda m: m.change("a1-w0-g1", waiting="x", terminating=True), Reason.BELOW_MIN, "", id="not one that is about to go"),
    ],
)  # fmt: skip
def test_workers_ready_says_what_a_pod_waits_for(change, reason, told):
    made = change(starting()).decides()
    condition = made.condition(ConditionType.WORKERS_READY)
    assert (condition.status, condition.reason) == ("False", reason)
    prefix = f"pretraining-{made.planned('pretraining').key[:10]}-"
    assert condition.message == REASON_TEXT[reason] + (f" {prefix}{told}" if told else "")
    assert [event.message for event in made.last.events if event.reason == "PodWaits"] == ([condition.message] if told else [])
    assert not made.decides().last.events, "told once"


def test_what_takes_a_while_is_looked_at_again_when_it_takes_long():
    made = starting().change("a1-w0-g1", **MOUNTS).after(10).decides()
    assert made.last.look_again == 20


def test_a_pod_that_nobody_wants_is_not_waited_for():
    made = training().ends("w1-g1", None).decides().decides()
    made.change("w1-g1", phase=PodPhase.PENDING, waiting="x")
    assert made.decides().condition(ConditionType.WORKERS_READY).message == REASON_TEXT[Reason.BELOW_REPLICAS]


def test_whatever_pods_tell_the_status_holds_it():
    """The API server takes 64 bits, and each name in the list of metrics once."""
    most = 2**53
    names = {f"{'n' * 125}{number:03}": float(number) for number in range(200)}
    told = Progress(
        step=most, total_steps=most, tokens=most, world_size=most, round=most, checkpoint_step=most, checkpoint_time=1e11,
        lost_steps=most, productive_seconds=1e11, remaining_seconds=1e300, last_step_time=1e11, metrics=names,
    )  # fmt: skip
    made = training().change("w0-g1", progress=told).after(60).decides()
    assert all(-(2**63) <= number < 2**63 for number in numbers(made.status.model_dump(mode="json")))
    metrics = [metric.name for metric in made.status.latest_metrics]
    assert len(metrics) == len(set(metrics)) == 64


def numbers(value):
    """All whole numbers in a plain value."""
    if isinstance(value, dict | list):
        return [found for one in (value.values() if isinstance(value, dict) else value) for found in numbers(one)]
    return [value] if isinstance(value, int) else []


def test_a_condition_keeps_its_time_until_its_status_changes():
    made = training()
    since = made.condition(ConditionType.WORKERS_READY).last_transition_time
    made.after(100).steps("w0-g1", 20).decides()
    assert made.condition(ConditionType.WORKERS_READY).last_transition_time == since
    made.after(100).ends("w1-g1", None).decides()
    assert made.condition(ConditionType.WORKERS_READY).last_transition_time == made.now


def test_complete_and_failed_exclude_each_other():
    for code, complete, failed in [(0, "True", "False"), (10, "False", "True")]:
        made = training().ends("w0-g1", code).decides()
        assert made.condition(ConditionType.COMPLETE).status == complete
        assert made.condition(ConditionType.FAILED).status == failed


def test_columns_show_the_training_and_not_what_runs_beside_it():
    made = world().finishes("pretraining-dataset").settles()
    assert made.stage("baseline").state == "Running"
    assert made.status.stage == "pretraining"
    assert (made.status.workers.desired, made.status.workers.ready) == (2, 2)


def test_the_stage_beside_the_one_that_failed_does_not_go_on():
    made = world().settles()
    made.ends(next(str(pod.name) for pod in made.stage_pods("baseline")), 10).decides()
    assert made.status.phase is Phase.FAILED
    assert made.stage("pretraining-dataset").state == "Suspended"
    assert (made.status.stage, made.status.workers.ready) == ("", 0)


def test_progress_is_that_of_the_pod_that_is_furthest_in_the_newest_round():
    made = (
        training().steps("w0-g1", 40, round=1).steps("w1-g1", 30, round=2, tokens=999, tokens_per_second=1234.5678, remaining_seconds=7.6)
    )
    progress = made.after(10).decides().status.progress
    assert (progress.stage, progress.step, progress.total_steps, progress.percentage) == ("pretraining", 30, 100, 30)
    assert (progress.tokens, progress.tokens_per_second, progress.remaining_seconds) == (999, "1234.6", 8)


def test_progress_does_not_fall_to_nothing_while_pods_that_go_on_load():
    made = training().steps("w0-g1", 40).steps("w1-g1", 40).after(10).decides()
    assert made.status.progress.percentage == 40
    made = made.steps("w0-g1", 0, total_steps=0).steps("w1-g1", 0, total_steps=0).after(10).decides()
    assert (made.status.progress.step, made.status.progress.percentage) == (40, 40)
    made = made.steps("w0-g1", 31).steps("w1-g1", 31).after(10).decides()
    assert made.status.progress.step == 31


def test_suspension_is_told_while_pods_still_save():
    made = training().edit(suspend=True).decides()
    told = next(one for one in made.status.conditions if one.type == "Suspended")
    assert (told.status, told.reason) == ("False", Reason.SUSPEND_REQUESTED)


def test_what_is_unknown_or_endless_has_no_remaining_time_and_no_percentage():
    made = training().steps("w0-g1", 40, total_steps=0, remaining_seconds=float("inf")).after(10).decides()
    assert (made.status.progress.remaining_seconds, made.status.progress.percentage) == (None, 0)


def test_more_steps_than_there_are_is_a_hundred_percent():
    assert training().steps("w0-g1", 140).after(10).decides().status.progress.percentage == 100


def test_latest_metrics_and_the_checkpoint_are_shown():
    made = training()
    made.steps("w0-g1", 20, loss=1.25, metrics={"bits_per_byte/id": 0.5}, checkpoint_step=16, checkpoint_time=made.now.timestamp())
    since = made.now
    made.after(10).decides()
    assert {metric.name: metric.value for metric in made.status.latest_metrics} == {"loss": "1.25", "bits_per_byte/id": "0.5"}
    assert (made.status.checkpoint.stage, made.status.checkpoint.step, made.status.checkpoint.time) == ("pretraining", 16, since)
    made.steps("w0-g1", 30, checkpoint_step=24).after(10).decides()
    assert (made.status.checkpoint.step, made.status.checkpoint.time) == (24, None)


@pytest.mark.parametrize(
    ("interval", "status", "reason"),
    [
        pytest.param((-0.01, 0.02), "True", Reason.WITHIN_MARGIN, id="within"),
        pytest.param((0.11, 0.2), "False", Reason.BEYOND_MARGIN, id="beyond"),
        pytest.param((0.01, 0.2), "Unknown", Reason.INTERVAL_TOO_WIDE, id="undecided"),
        pytest.param(None, "Unknown", Reason.RETENTION_NOT_MEASURED, id="not measured"),
    ],
)
def test_whether_english_was_kept_is_a_condition_that_outlives_the_pods(interval, status, reason):
    made = world(pretraining=None, evaluation={"retention": {}, **EVALUATION["evaluation"]})
    english = Score(suite="s", task="udhr-en", language="en", metric="bits_per_byte", value=1.0, baseline=1.0, difference=0.0,
                    interval=interval, items=3, higher_is_better=False)  # fmt: skip
    condition = made.has_artifact("evaluation", scores=[english]).decides().condition(ConditionType.ENGLISH_RETAINED)
    assert (condition.status, condition.reason) == (status, reason)
    made.artifacts.clear()
    made.pods.clear()
    assert made.decides().condition(ConditionType.ENGLISH_RETAINED) == condition


def test_as_many_checkpoints_as_a_file_may_name_have_room_in_the_status():
    pretraining = {**TRAINING["pretraining"], "snapshotTokens": [512 * (number + 1) for number in range(32)]}
    tuning = {"data": [{"path": "pairs.jsonl"}], "sequenceLength": 64, "globalBatchTokens": 512}
    vocabulary = {"addedTokens": 100, "corpus": [{"path": "id.txt"}]}
    made = world(
        pretraining=pretraining,
        instructionTuning=tuning,
        vocabulary=vocabulary,
        evaluation={**EVALUATION["evaluation"], "when": "EachCheckpoint"},
    )
    assert len(made.decides().status.stages) == 39


def test_a_worker_alone_that_crashed_in_a_later_round_does_not_hide_its_successor():
    made = training(workers={"min": 1, "replicas": 1, "max": 1}).steps("w0-g1", 50, round=1).decides()
    made.ends("w0-g1", 1).decides().runs().decides()
    for step in (45, 60):
        made.after(60).steps("w0-g2", step, round=0).decides()
        assert made.status.progress.step == step
    assert (made.stage().last_step, made.stage().fruitless) == (60, 0)


def test_nothing_is_left_to_wait_for_while_nothing_runs():
    made = training().steps("w0-g1", 20, remaining_seconds=3600).after(60).decides()
    assert made.status.progress.eta == "1h00m"
    assert made.edit(suspend=True).settles().status.progress.eta == ""
    progress = made.status.progress
    assert made.after(60).decides().status.progress is progress, "what is not new is not measured by"


def test_without_a_gate_nothing_is_said_of_english():
    assert all(one.type is not ConditionType.ENGLISH_RETAINED for one in training().decides().status.conditions)


def test_scores_are_kept_as_text_and_differences_with_their_sign():
    made = world(pretraining=None)
    score = Score(suite="s", task="t", language="id", metric="m", value=0.5, baseline=0.4, difference=0.1, interval=(-0.05, 0.25), items=3)
    alone = Score(suite="s", task="t", language="id", metric="m", value=0.5, interval=(0.4, 0.6), items=3)
    first, second = made.has_artifact("evaluation", scores=[score, alone]).decides().status.results.scores
    assert (first.value, first.baseline, first.difference, first.interval) == ("0.5", "0.4", "+0.1", ["-0.05", "+0.25"])
    assert (second.baseline, second.difference, second.interval) == (None, None, ["0.4", "0.6"])


@pytest.mark.parametrize(("value", "text", "difference"), [(1 / 3, "0.33333", "+0.33333"), (-2e-9, "-2e-09", "-2e-09"), (0.0, "0", "+0")])
def test_numbers_have_five_digits(value, text, difference):
    assert (number(value), signed(value)) == (text, difference)


# Looking is not writing.


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: world().settles(), id="stages that prepare"),
        pytest.param(lambda: training(), id="training"),
        pytest.param(lambda: training().ends("w1-g1", None).decides().decides(), id="a replacement that waits"),
        pytest.param(lambda: training().ends("w1-g1", 1).settles().ends("w1-g2", 1).decides(), id="backing off"),
        pytest.param(
            lambda: training(workers={"min": 2, "replicas": 2}).ends("w1-g1", None).decides().decides(), id="fewer workers than min"
        ),
        pytest.param(lambda: training().edit(suspend=True).settles(), id="suspended"),
        pytest.param(lambda: training().ends("w0-g1").settles(), id="complete"),
        pytest.param(lambda: training().ends("w0-g1", 10).settles(), id="failed"),
    ],
)
def test_a_second_look_writes_nothing_does_nothing_and_says_nothing(made):
    made = made()
    before = made.status
    for _ in range(5):
        made.after(1).decides()
        assert made.status == before
        assert made.last.actions == ()
        assert made.last.events == ()


def test_progress_alone_is_written_every_ten_seconds():
    made = training()
    writes = 0
    for second in range(1, 61):
        before = made.status
        made.after(1).steps("w0-g1", 10 + second, loss=1 / second, productive_seconds=second).decides()
        writes += made.status != before
    assert writes == 6


def test_a_pod_that_repeats_itself_is_not_written_down():
    made = training()
    before = made.status
    for _ in range(20):
        made.after(15).steps("w0-g1", 10).decides()
    assert made.status == before


def test_a_whole_experiment_takes_few_writes():
    made = world()
    made.finishes(*[plan.name for plan in made.plan])
    statuses = [decision.status for decision in made.decisions]
    assert sum(new != old for old, new in itertools.pairwise(statuses)) <= 12

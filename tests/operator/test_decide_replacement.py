"""A pod that ends is replaced, or not, by its cause: every row of the table of exit codes; budgets and back-off."""

from __future__ import annotations

import pytest

from tests.operator.builders import training, world
from transfer_api.progress import Outcome, ResultMessage
from transfer_api.status import ConditionType, Phase, Reason, StageState

ROWS = [
    pytest.param(1, {}, "application", id="a crash is on the application budget"),
    pytest.param(2, {}, "application", id="an unknown code is a crash"),
    pytest.param(137, {}, "application", id="killed without a reason is a crash"),
    pytest.param(0, {"result": None}, "application", id="code 0 that names no artifact is a crash"),
    pytest.param(
        0, {"result": ResultMessage(outcome=Outcome.COMPLETE)}, "application", id="code 0 with a message without artifact is a crash"
    ),
    pytest.param(137, {"out_of_memory": True}, "application", id="out of memory is on the application budget"),
    pytest.param(137, {"out_of_memory": True, "terminating": True}, "application", id="out of memory while asked to stop stays so"),
    pytest.param(75, {}, "saved", id="saved on request is not on a budget"),
    pytest.param(143, {"terminating": True}, "saved", id="deleted by somebody and ended by SIGTERM is a request"),
    pytest.param(137, {"terminating": True}, "saved", id="deleted by somebody and killed after its grace is a request"),
    pytest.param(1, {"terminating": True}, "application", id="a crash stays one when somebody deletes the pod"),
    pytest.param(1, {"disrupted": True}, "preemption", id="a disruption explains any code"),
    pytest.param(75, {"disrupted": True}, "preemption", id="a drained pod that saved is a preemption"),
    pytest.param(137, {"disrupted": True, "out_of_memory": True}, "preemption", id="evicted for memory of the node is a preemption"),
    pytest.param(None, {"disrupted": True}, "preemption", id="preempted without a code is a preemption"),
    pytest.param(None, {}, "infrastructure", id="lost without a code is infrastructure"),
    pytest.param(None, {"lost": False}, "infrastructure", id="ended without a code is infrastructure"),
    pytest.param(None, {"terminating": True}, "infrastructure", id="lost while it was being deleted is infrastructure"),
]


@pytest.mark.parametrize(("code", "fields", "cause"), ROWS)
def test_a_worker_that_ends_is_replaced_and_counted_once(code, fields, cause):
    made = training().ends("w1-g1", code, **fields).decides()
    assert made.created() == ["a1-w1-g2"]
    assert made.counts() == {cause: 1}
    assert made.worker(1).cause == cause
    assert made.worker(0).generation == 1, "the survivor goes on"
    made.decides().settles()
    assert getattr(made.status.restarts, cause) == 1, "however often it is looked at"


@pytest.mark.parametrize(("code", "reason"), [(10, Reason.CANNOT_WORK), (11, Reason.CHECKPOINT_UNREADABLE)])
@pytest.mark.parametrize("fields", [{}, {"disrupted": True}, {"terminating": True}], ids=["alone", "disrupted", "terminating"])
def test_what_cannot_work_is_not_tried_again(code, reason, fields):
    made = training().ends("w1-g1", code, message="spec.pretraining: no", **fields).decides()
    failure = made.status.failure
    assert made.status.phase is Phase.FAILED
    assert (failure.reason, failure.stage, failure.exit_code) == (reason, "pretraining", code)
    assert failure.message == "spec.pretraining: no"
    assert failure.pod.endswith("a1-w1-g1")
    assert made.stage().state is StageState.FAILED
    assert made.condition(ConditionType.FAILED).status == "True"
    assert made.condition(ConditionType.FAILED).reason is reason
    assert made.deleted() == ["a1-rendezvous", "a1-w0-g1"], "the pod that failed stays for its log"
    assert made.status.restarts.application == 0


def test_the_code_is_named_where_the_pod_says_nothing():
    assert training().ends("w1-g1", 10).decides().status.failure.message == "ended with code 10"


def test_crashes_beside_the_worker_that_knows_why_are_its_echo():
    made = training().ends("w0-g1", 1).ends("w1-g1", 10, message="why").decides()
    assert made.status.failure.message == "why"
    assert made.status.restarts.application == 0


def test_a_pod_that_is_deleted_is_replaced_before_it_has_ended():
    made = training().change("w1-g1", terminating=True).decides()
    assert made.created() == ["a1-w1-g2"]
    assert made.status.restarts.saved == 1
    made.ends("w1-g1", 137, terminating=True).decides()
    assert (made.status.restarts.saved, made.status.restarts.application) == (1, 0)


def test_where_others_have_taken_the_stage_over_the_next_attempt_begins_and_is_counted_once():
    made = training().ends("w0-g1", 78, message="attempt 7").ends("w1-g1", 78).decides()
    assert made.created() == ["a2-rendezvous", "a2-w0-g1", "a2-w1-g1"]
    assert made.counts() == {"application": 1}
    assert made.stage().message == "attempt 7"
    for attempt in (2, 3):
        made.after(300).settles().ends(f"a{attempt}-w0-g1", 78).decides()
    made.after(300).settles().ends("a4-w0-g1", 78, message="attempt 9").decides()
    assert made.status.phase is Phase.FAILED, "two that both make it do not take it in turns for ever"
    assert made.status.failure.reason is Reason.RESTART_LIMIT_EXCEEDED
    assert "attempt 9" in made.status.failure.message


def test_a_zombie_that_finds_its_stage_taken_over_by_its_replacement_counts_on_nothing():
    made = training().change("w1-g1", terminating=True, lost=True).decides()
    assert made.created() == ["a1-w1-g2"]
    counts = made.counts()
    made.ends("w1-g1", 78).decides()
    assert made.created() == []
    assert made.counts() == counts
    assert made.stage().attempt == 1


def test_a_drain_is_seen_while_the_pod_still_saves():
    made = training().change("w1-g1", terminating=True, disrupted=True).decides()
    assert made.created() == ["a1-w1-g2"]
    made.ends("w1-g1", 75, terminating=True, disrupted=True).decides()
    assert (made.status.restarts.preemption, made.status.restarts.saved) == (1, 0)


def test_a_pod_that_is_gone_without_a_trace_is_lost():
    made = training().vanishes("w1-g1").decides()
    assert made.created() == ["a1-w1-g2"]
    assert made.status.restarts.infrastructure == 1


def test_a_pod_that_was_never_seen_is_not_lost_but_not_yet_made():
    made = world(evaluation=None, workers={"replicas": 1}).decides()
    made.pods.clear()
    made.decides()
    assert made.created() == ["a1-w0-g1"]
    assert made.status.restarts.infrastructure == 0


def test_five_evictions_in_a_row_are_replaced_at_once_each():
    made = training(restarts={"application": 0, "infrastructure": 0})
    for generation in range(1, 6):
        made.after(5).ends(f"w1-g{generation}", None, disrupted=True).decides()
        assert made.created() == [f"a1-w1-g{generation + 1}"]
        made.runs()
        made.decides()
    assert made.status.restarts.preemption == 5
    assert made.status.phase is Phase.RUNNING


def test_of_each_worker_the_last_pod_that_crashed_stays_for_its_log():
    made = training(restarts={"application": 100}).ends("w1-g1", 1).decides()
    assert (made.created(), made.deleted()) == (["a1-w1-g2"], [])
    made.runs().decides().after(120).steps("w0-g1", 20).decides().ends("w1-g2", 1).decides()
    assert (made.created(), made.deleted()) == (["a1-w1-g3"], ["a1-w1-g1"])
    assert made.runs().decides().after(120).ends("w0-g1", 137).decides().deleted() == []
    assert made.after(11).decides().created() == ["a1-w0-g2"]
    assert made.edit(suspend=True).decides().deleted() == ["a1-rendezvous", "a1-w0-g1", "a1-w0-g2", "a1-w1-g2", "a1-w1-g3"]


@pytest.mark.parametrize(
    ("code", "fields"),
    [(75, {}), (None, {}), (143, {"disrupted": True}), (None, {"disrupted": True}), (137, {"lost": True})],
    ids=["saved", "lost", "evicted", "preempted", "killed from outside"],
)
def test_a_pod_that_did_not_fail_by_itself_leaves_nothing_to_read(code, fields):
    assert training().ends("w1-g1", code, **fields).decides().deleted() == ["a1-w1-g1"]


def test_the_last_words_of_the_pod_are_kept():
    made = training().ends("w1-g1", 1, message="x" * 4000).decides()
    assert made.worker(1).message == "x" * 500
    assert "a1-w1-g1: xxx" in made.stage().message
    assert made.events() == ["WorkerReplaced"]


# A wave: workers that run in step crash together.


def test_all_workers_that_crash_in_one_wave_count_once():
    made = training(workers={"min": 1, "replicas": 4}, restarts={"application": 1})
    made.after(60).ends("w0-g1", 1).ends("w1-g1", 1).decides()
    made.after(2).ends("w2-g1", 1).decides()
    made.after(50).ends("w3-g1", 1).decides()
    assert made.status.restarts.application == 1
    assert [made.worker(index).generation for index in range(4)] == [2, 2, 2, 2]


def test_the_next_wave_counts_again():
    made = training(restarts={"application": 1}).after(60).ends("w0-g1", 1).ends("w1-g1", 1).decides().runs().decides()
    made.after(5).ends("w0-g2", 1).ends("w1-g2", 1).decides()
    assert made.status.failure.reason is Reason.RESTART_LIMIT_EXCEEDED
    assert made.status.restarts.application == 2


def test_a_survivor_that_crashes_long_after_is_no_echo():
    made = training().ends("w0-g1", 1).decides().after(61).ends("w1-g1", 1).decides()
    assert made.status.restarts.application == 2


def test_losses_of_several_pods_are_counted_each():
    made = training().ends("w0-g1", None).ends("w1-g1", None).decides()
    assert made.status.restarts.infrastructure == 2


# Memory.


def test_memory_may_run_out_once_but_not_twice():
    made = training().ends("w1-g1", 137, out_of_memory=True).decides()
    assert made.stage().out_of_memory == 1
    made.runs().decides().after(5).ends("w1-g2", 137, out_of_memory=True).decides()
    assert made.status.failure.reason is Reason.OUT_OF_MEMORY
    assert "microBatchTokens" in made.status.failure.message
    assert (made.status.failure.pod[-9:], made.status.failure.exit_code) == ("-a1-w1-g2", 137)
    assert made.created() == []


def test_all_workers_out_of_memory_at_once_is_once():
    made = training().ends("w0-g1", 137, out_of_memory=True).ends("w1-g1", 137, out_of_memory=True).decides()
    assert made.status.phase is Phase.RUNNING
    assert (made.stage().out_of_memory, made.status.restarts.application) == (1, 1)


def test_out_of_memory_is_not_lost_among_the_crashes_that_it_caused():
    made = training().ends("w0-g1", 1).ends("w1-g1", 137, out_of_memory=True).decides()
    assert (made.stage().out_of_memory, made.status.restarts.application) == (1, 1)


def test_a_crash_and_then_its_cause_out_of_memory_are_both_seen():
    made = training().ends("w0-g1", 1).decides().after(1).ends("w1-g1", 137, out_of_memory=True).decides()
    assert made.stage().out_of_memory == 1


# Budgets.


@pytest.mark.parametrize(
    ("cause", "fields"),
    [
        pytest.param("application", {"code": 1}, id="application"),
        pytest.param("infrastructure", {"code": None}, id="infrastructure"),
        pytest.param("preemption", {"code": None, "disrupted": True}, id="preemption"),
    ],
)
def test_with_a_budget_of_three_the_fourth_incident_fails_the_experiment(cause, fields):
    made = training(restarts={cause: 3})
    for generation in range(1, 5):
        assert made.status.phase is Phase.RUNNING
        made.after(400).decides().runs().decides().ends(f"w1-g{generation}", **fields).decides()
    assert made.status.failure.reason is Reason.RESTART_LIMIT_EXCEEDED
    assert f"spec.restarts.{cause}" in made.status.failure.message
    assert made.status.failure.pod.endswith("w1-g4")
    assert made.created() == []


def test_a_budget_of_none_fails_at_the_first_incident():
    assert training(restarts={"application": 0}).ends("w1-g1", 1).decides().status.phase is Phase.FAILED


def test_a_budget_is_the_experiments_and_not_the_stages():
    made = world(evaluation=None, restarts={"application": 1}).settles().ends("w0-g1", 1).settles()
    made.ends("w0-g2").settles()
    assert made.stage().state is StageState.RUNNING
    made.ends("w0-g1", 1).decides()
    assert made.status.failure.reason is Reason.RESTART_LIMIT_EXCEEDED
    assert made.status.restarts.application == 2


def test_saving_on_request_and_preemption_have_no_limit_by_default():
    made = training()
    for generation in range(1, 60):
        made.ends(f"w1-g{generation}", 75, disrupted=generation % 2 == 0).decides().runs().decides()
    assert made.status.phase is Phase.RUNNING
    assert made.worker(1).generation == 60


# Back-off.


def crash(made, generation):
    made.runs().decides().after(1).ends(f"w0-g{generation}", 1).decides()
    return (made.stage("pretraining-dataset").retry_time - made.now).total_seconds() if made.created() == [] else 0


def test_crashes_without_a_step_in_between_wait_longer_and_longer():
    made = world(evaluation=None, restarts={"application": 100}).decides()
    waits = []
    for generation in range(1, 10):
        waits.append(crash(made, generation))
        if waits[-1]:
            assert made.last.look_again == waits[-1]
            assert made.after(waits[-1] - 1).decides().created() == []
            assert made.after(1).decides().created() == [f"a1-w0-g{generation + 1}"]
            assert made.stage("pretraining-dataset").retry_time is None
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_new_highest_step_ends_the_back_off():
    made = training(restarts={"application": 100}).ends("w1-g1", 1).decides().runs().decides()
    made.after(1).ends("w1-g2", 1).decides().after(10).decides().runs().decides().ends("w1-g3", 1).decides()
    assert (made.created(), made.last.look_again) == ([], 20)
    made.after(11).steps("w0-g1", 11).decides()
    assert made.created() == ["a1-w1-g4"]
    assert (made.stage().fruitless, made.stage().retry_time) == (0, None)


def test_a_step_done_again_does_not_end_the_back_off():
    made = training().ends("w1-g1", 1).decides().runs().decides().after(20).steps("w0-g1", 9).decides()
    assert made.stage().fruitless == 1
    assert made.stage().last_step == 10


def test_a_worker_that_one_node_after_the_other_rejects_waits_longer_and_longer():
    made = training()
    waits = []
    for generation in range(1, 6):
        made.ends(f"w1-g{generation}", None, rejected=True).decides()
        begun = made.now
        while made.created() != [f"a1-w1-g{generation + 1}"]:
            made.after(made.last.look_again).decides()
        waits.append((made.now - begun).total_seconds())
    assert waits == [0, 10, 20, 40, 80]
    assert made.counts() == {"infrastructure": 5}
    made.runs().ends("w1-g6", None).decides()
    assert made.created() == ["a1-w1-g7"], "one that ran is replaced at once"


def test_preemption_and_loss_wait_for_nothing():
    made = training()
    for generation in range(1, 6):
        made.ends(f"w1-g{generation}", None).decides()
        assert made.created() == [f"a1-w1-g{generation + 1}"]
        made.runs().decides()
    assert made.stage().fruitless == 0


def test_a_damaged_checkpoint_is_told_once_with_the_pod_whose_log_says_why():
    made = training()
    told = []
    for passed_over in ([], [20], [20], [20, 16], []):
        made.steps("w0-g1", 21, pod="pretraining-w0", passed_over=passed_over).decides()
        told += [event.message for event in made.last.events if event.reason == "CheckpointPassedOver"]
    words = "is damaged and was passed over; the log of pretraining-w0 says why"
    assert told == [f"pretraining: the checkpoint of step {step} {words}" for step in (20, 16)]
    assert made.stage().passed_over == [16, 20]

"""Workers come and go: rendezvous, resize, suspend, too few workers, stall, pods that do not start."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.operator.builders import training, world
from transfer_api.status import ConditionType, Phase, Reason, StageState
from transfer_operator.decide import CreatePod, PodPhase

# Rendezvous.


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        pytest.param(lambda made: made.vanishes("a1-rendezvous"), "infrastructure", id="gone without a trace"),
        pytest.param(lambda made: made.ends("a1-rendezvous", None), "infrastructure", id="lost with its node"),
        pytest.param(lambda made: made.change("a1-rendezvous", terminating=True, disrupted=True), "preemption", id="drained"),
        pytest.param(lambda made: made.change("a1-rendezvous", terminating=True), "saved", id="deleted by somebody"),
        pytest.param(lambda made: made.ends("a1-rendezvous", 1), "application", id="crashed"),
    ],
)
def test_without_its_rendezvous_the_attempt_begins_again(change, cause):
    made = change(training()).decides()
    assert made.created() == ["a2-rendezvous", "a2-w0-g1", "a2-w1-g1"]
    assert {"a1-w0-g1", "a1-w1-g1"} <= set(made.deleted())
    assert made.counts() == {cause: 1}
    assert "AttemptRestarted" in made.events()
    assert made.stage().last_step == 10, "progress is kept"
    made.settles()
    assert (made.stage().attempt, getattr(made.status.restarts, cause)) == (2, 1)


def test_a_worker_that_will_always_be_alone_needs_no_rendezvous():
    made = training(workers={"replicas": 1})
    assert not any("rendezvous" in name for name in made.pods), list(made.pods)
    made.settles(3)
    assert made.stage().restarts.infrastructure == 0, "the rendezvous that is not there was not lost"


def test_where_more_workers_are_wanted_than_the_attempt_can_have_a_new_one_begins_and_nothing_is_counted():
    made = training(workers={"replicas": 1}).edit(workers={"replicas": 2, "max": 4}).decides()
    assert made.created() == ["a2-rendezvous", "a2-w0-g1", "a2-w1-g1"]
    assert made.counts() == {"saved": 1}
    assert made.stage().max_workers == 4


def test_where_everything_is_lost_at_once_it_is_one_incident():
    made = training().vanishes("w0-g1", "w1-g1", "a1-rendezvous").decides()
    assert made.stage().attempt == 2
    assert made.status.restarts.infrastructure == 1


def test_workers_that_crash_because_the_rendezvous_died_are_its_echo():
    made = training().ends("w0-g1", 1).ends("w1-g1", 1).ends("a1-rendezvous", None).decides()
    assert (made.status.restarts.application, made.status.restarts.infrastructure) == (0, 1)


def test_a_rendezvous_that_was_never_seen_is_made_again_and_not_counted():
    made = world(evaluation=None).finishes("pretraining-dataset").decides()
    made = world(evaluation=None).has_artifact("pretraining-dataset").decides()
    made.pods.clear()
    assert made.decides().created() == ["a1-rendezvous", "a1-w0-g1", "a1-w1-g1"]
    assert made.stage().attempt == 1


def test_a_rendezvous_that_says_why_it_cannot_work_fails_the_experiment():
    assert training().ends("a1-rendezvous", 10, message="port").decides().status.failure.message == "port"


def test_where_the_rendezvous_was_the_last_of_the_budget_the_experiment_fails():
    made = training(restarts={"infrastructure": 0}).vanishes("a1-rendezvous").decides()
    assert made.status.failure.reason is Reason.RESTART_LIMIT_EXCEEDED
    assert made.created() == []


def test_zombies_of_an_older_attempt_are_not_wanted_and_their_ends_do_not_count():
    made = training().vanishes("a1-rendezvous").decides()
    made.change("w0-g1" if len(made.stage_pods("pretraining")) < 4 else made_name(made, "a1-w0-g1"), terminating=False)
    made.decides()
    assert "a1-w0-g1" in made.deleted()
    made.ends(made_name(made, "a1-w0-g1"), 1).decides()
    assert made.status.restarts.application == 0


def made_name(made, short):
    return next(name for name in made.pods if name.startswith("pretraining-") and name.endswith(short))


# Resize.


def test_from_two_to_three_to_one_only_the_missing_come_and_the_highest_go():
    made = training().edit(workers={"replicas": 3}).decides()
    assert (made.created(), made.deleted()) == (["a1-w2-g1"], [])
    made.settles().edit(workers={"replicas": 1}).decides()
    assert (made.created(), made.deleted()) == ([], ["a1-w1-g1", "a1-w2-g1"])
    made.settles()
    assert [pod.name.index for pod in made.stage_pods("pretraining") if "rendezvous" not in str(pod.name)] == [0]
    assert made.status.workers.desired == 1
    assert made.counts() == {}
    assert made.stage().attempt == 1


@pytest.mark.parametrize("code", [75, 0, 1, 137, None])
def test_the_end_of_a_worker_that_was_scaled_away_is_no_incident(code):
    made = training().edit(workers={"replicas": 1}).decides().ends("w1-g1", code, result=None, terminating=True).decides()
    made.vanishes("w1-g1").decides()
    assert made.counts() == {}


def test_an_index_that_comes_back_is_the_next_generation_while_the_old_pod_still_saves():
    made = training().edit(workers={"replicas": 1}).decides().edit(workers={"replicas": 2}).decides()
    assert made.created() == ["a1-w1-g2"]
    assert made.counts() == {}


def test_a_scale_down_whose_deletion_was_lost_is_carried_out_later():
    made = training().edit(workers={"replicas": 1}).decides().change("w1-g1", terminating=False).decides()
    assert made.deleted() == ["a1-w1-g1"]
    assert made.counts() == {}


def test_the_old_pod_of_an_index_goes_before_the_new_one_is_made():
    made = training().edit(workers={"replicas": 1}).decides().change("w1-g1", terminating=False)
    made.edit(workers={"replicas": 2}).decides()
    assert [str(action.name)[-5:] for action in made.last.actions] == ["w1-g1", "w1-g2"], "deleted, and only then created"


def test_scaling_down_a_worker_that_was_lost_counts_the_loss_and_does_not_replace_it():
    made = training().ends("w1-g1", None).edit(workers={"replicas": 1}).decides()
    assert made.status.restarts.infrastructure == 1
    assert made.created() == []


def test_replicas_below_min_run_as_many_as_are_wanted():
    """The API server refuses it; decide must not crash nor give nodes back for ever."""
    made = training(workers={"min": 2, "replicas": 3}).edit(workers={"replicas": 1}).settles().after(10_000)
    made.steps("w0-g1", 11).decides()
    assert made.stage().state is StageState.RUNNING
    assert made.status.phase is Phase.RUNNING


def test_replicas_above_max_widen_the_rendezvous():
    made = training().edit(workers={"replicas": 6}).decides()
    assert {action.max_nodes for action in made.last.actions if isinstance(action, CreatePod)} == {6}


# Suspend.


def test_suspend_has_every_pod_save_and_resume_goes_on_with_the_next_attempt():
    made = training().edit(suspend=True).decides()
    assert made.deleted() == ["a1-rendezvous", "a1-w0-g1", "a1-w1-g1"]
    assert {action.grace_seconds for action in made.last.actions} == {120}
    assert made.status.phase is Phase.RUNNING
    assert made.condition(ConditionType.SUSPENDED).status == "False"
    made.ends("w0-g1", 75).ends("w1-g1", 75).ends("a1-rendezvous", 143).decides()
    assert made.status.phase is Phase.SUSPENDED
    assert made.condition(ConditionType.SUSPENDED).status == "True"
    assert made.stage().state is StageState.SUSPENDED
    made.settles().edit(suspend=False).decides()
    assert made.created() == ["a2-rendezvous", "a2-w0-g1", "a2-w1-g1"]
    assert made.stage().last_step == 10
    assert made.counts() == {}


@pytest.mark.parametrize("gone", [False, True], ids=["while its pods still save", "when they are gone and nobody looked"])
def test_resume_before_the_suspension_is_over_counts_nothing(gone):
    made = training().edit(suspend=True).decides()
    if gone:
        made.pods.clear()
    made.edit(suspend=False).decides()
    assert made.created() == ["a2-rendezvous", "a2-w0-g1", "a2-w1-g1"]
    made.settles()
    assert made.counts() == {}


def test_a_node_that_is_given_up_does_not_hold_up_a_suspension():
    made = training().edit(suspend=True).decides().ends("w0-g1", 75).ends("a1-rendezvous", 143).decides()
    assert made.status.phase is Phase.RUNNING
    made.change("w1-g1", lost=True).decides()
    assert made.status.phase is Phase.SUSPENDED
    assert "a1-w1-g1" in made.stage().message
    assert "does not answer" in made.stage().message
    made.edit(suspend=False).decides()
    assert made.created() == ["a2-rendezvous", "a2-w0-g1", "a2-w1-g1"]
    assert made.stage().message == ""
    assert made.counts() == {}


def test_a_pod_that_outlives_its_grace_does_not_hold_up_a_suspension():
    made = training().edit(suspend=True).decides().ends("w0-g1", 75).ends("a1-rendezvous", 143)
    made.change("w1-g1", gone_by=made.now + timedelta(seconds=120)).decides()
    assert made.last.look_again == 180
    assert made.after(179).decides().status.phase is Phase.RUNNING
    assert made.after(1).decides().status.phase is Phase.SUSPENDED
    assert made.last.look_again is None


def test_a_pod_that_the_api_server_refuses_does_not_hold_up_a_suspension():
    made = world(evaluation=None, workers={"replicas": 1}).decides().change("w0-g1", refused=True).edit(suspend=True).decides()
    assert made.deleted() == ["a1-w0-g1"]
    assert made.status.phase is Phase.SUSPENDED


def test_an_experiment_that_is_suspended_from_the_start_makes_nothing():
    made = world(suspend=True).decides()
    assert made.status.phase is Phase.SUSPENDED
    assert made.last.actions == ()


def test_a_stage_that_completes_while_it_is_suspended_is_complete_and_the_next_does_not_begin():
    made = world(evaluation=None).settles().edit(suspend=True).ends("w0-g1").decides()
    assert made.stage("pretraining-dataset").state is StageState.COMPLETE
    assert made.stage().state is StageState.WAITING
    assert made.status.phase is Phase.SUSPENDED


def test_what_cannot_work_fails_also_while_it_is_suspended():
    made = training().edit(suspend=True).ends("w0-g1", 10).decides()
    assert made.status.phase is Phase.FAILED


def test_a_pod_that_shows_up_while_suspended_is_deleted():
    made = world(evaluation=None, workers={"replicas": 1}).decides()
    late = dict(made.pods)
    made.pods.clear()
    made.edit(suspend=True).decides()
    assert made.status.phase is Phase.SUSPENDED
    made.pods.update(late)
    assert made.decides().deleted() == ["a1-w0-g1"]


def test_suspending_during_a_back_off_ends_it():
    made = world(evaluation=None, workers={"replicas": 1}).settles().ends("w0-g1", 1).settles().ends("w0-g2", 1).decides()
    assert made.stage("pretraining-dataset").retry_time
    made.edit(suspend=True).settles().edit(suspend=False).decides()
    assert made.created() == ["a2-w0-g1"]


# Too few workers.


def below_min():
    return training(workers={"min": 2, "replicas": 2}).ends("w1-g1", None, disrupted=True).decides()


def test_with_fewer_than_min_for_too_long_the_nodes_are_given_back_and_taken_again():
    made = below_min()
    assert made.stage().below_min_since == made.now
    assert made.after(599).decides().stage().state is StageState.RUNNING
    assert made.last.look_again == 1
    made.after(1).decides()
    assert made.stage().state is StageState.WAITING
    assert made.events() == ["GaveNodesBack"]
    assert made.deleted() == ["a1-rendezvous", "a1-w0-g1", "a1-w1-g2"]
    assert made.condition(ConditionType.WORKERS_READY).reason is Reason.BELOW_MIN
    wait = made.last.look_again
    assert 30 <= wait < 90
    assert made.settles().created() == []
    made.after(wait).decides()
    assert made.created() == ["a2-rendezvous", "a2-w0-g1", "a2-w1-g1"]
    assert made.stage().retry_time is None
    assert made.counts() == {"preemption": 1}


def test_the_nodes_are_given_back_also_where_the_first_deletion_was_lost():
    made = below_min().after(600).decides().change("w0-g1", terminating=False).decides()
    assert made.deleted() == ["a1-w0-g1"]


def test_a_worker_that_comes_in_time_ends_the_wait():
    made = below_min().after(599).runs().decides()
    assert made.stage().below_min_since is None
    assert made.after(100).decides().stage().state is StageState.RUNNING


def test_pods_that_all_wait_hold_nothing_and_go_on_waiting():
    made = training(workers={"min": 2, "replicas": 2})
    made.ends("w0-g1", None).ends("w1-g1", None).decides().after(1000).decides()
    assert made.stage().state is StageState.RUNNING
    assert made.stage().below_min_since is None


# Stall.


def test_no_step_for_too_long_while_pods_run_begins_the_attempt_again():
    made = training(deadlines={"stallSeconds": 100})
    assert made.last.look_again == 100
    assert made.after(99).decides().stage().attempt == 1
    made.after(1).decides()
    assert made.created() == ["a2-rendezvous", "a2-w0-g1", "a2-w1-g1"]
    assert made.status.restarts.stall == 1
    assert made.condition(ConditionType.STALLED).status == "True"
    made.settles()
    assert made.status.restarts.stall == 1
    made.steps("a2-w0-g1", 11).after(20).decides()
    assert made.condition(ConditionType.STALLED).status == "False"


def test_the_stall_budget_is_spent_by_stalls():
    made = training(deadlines={"stallSeconds": 100}, restarts={"stall": 1})
    made.after(100).settles().after(100).decides()
    assert made.status.failure.reason is Reason.RESTART_LIMIT_EXCEEDED
    assert "spec.restarts.stall" in made.status.failure.message


def test_a_second_stall_waits_before_the_next_attempt():
    made = training(deadlines={"stallSeconds": 100}).after(100).settles().after(100).decides()
    assert made.stage().attempt == 3
    assert made.created() == []
    assert made.last.look_again == 10
    made.settles().after(10).decides()
    assert made.created() == ["a3-rendezvous", "a3-w0-g1", "a3-w1-g1"]
    made.settles()
    assert (made.stage().attempt, made.status.restarts.stall) == (3, 2)


def test_steps_that_are_done_again_after_a_crash_are_no_stall():
    made = training(deadlines={"stallSeconds": 100}).ends("w1-g1", 1).settles()
    for step in range(2, 9):
        made.after(60).steps("w0-g1", step).decides()
    assert (made.stage().attempt, made.status.restarts.stall) == (1, 0)
    assert made.after(100).decides().status.restarts.stall == 1


def test_a_pod_whose_clock_is_ahead_hides_no_stall_for_longer_than_it_lives_on():
    made = training(deadlines={"stallSeconds": 100})
    made.steps("w0-g1", 10, last_step_time=made.now.timestamp() + 50)
    assert made.decides().last.look_again == 100


def test_time_in_the_queue_is_no_stall():
    made = world(evaluation=None, deadlines={"stallSeconds": 100}).has_artifact("pretraining-dataset").decides()
    made.after(1000).runs().decides()
    assert made.status.restarts.stall == 0
    assert made.last.look_again == 100


def test_workers_that_wait_for_others_do_not_stall():
    made = training(workers={"min": 2, "replicas": 2}, deadlines={"stallSeconds": 100})
    made.ends("w1-g1", None, disrupted=True).decides().after(500).decides()
    assert made.status.restarts.stall == 0
    made.runs().after(99).decides()
    assert made.status.restarts.stall == 0
    made.after(1).decides()
    assert made.status.restarts.stall == 1


def test_nobody_is_blamed_for_steps_that_an_operator_was_not_there_to_see():
    made = training(deadlines={"stallSeconds": 100}).change("w0-g1", progress=None).change("w1-g1", progress=None)
    made.after(500)
    made.asked_since = made.now
    assert made.decides().status.restarts.stall == 0
    assert made.last.look_again == 100
    made.after(50).steps("w0-g1", 10, last_step_time=made.now.timestamp() - 120).decides()
    assert made.status.restarts.stall == 1, "who answers tells when the last step was"


def test_pods_that_nobody_can_ask_are_not_restarted_for_their_silence():
    made = world(evaluation=None, deadlines={"stallSeconds": 100}).has_artifact("pretraining-dataset").decides().runs()
    made.reachable = False
    made.decides().after(29).decides()
    assert made.condition(ConditionType.STALLED).status == "False"
    made.after(500).decides()
    assert made.status.restarts.stall == 0
    assert (made.condition(ConditionType.STALLED).status, made.condition(ConditionType.STALLED).reason) == ("Unknown", Reason.NO_ANSWER)
    made.reachable = True
    made.decides()
    assert made.status.restarts.stall == 1, "where others answer, silence is a stall"


def test_a_crash_long_after_a_stall_is_no_stall():
    made = training(deadlines={"stallSeconds": 100}).after(100).settles().steps("a2-w0-g1", 11).after(20).decides()
    made.ends("a2-w0-g1", 1).decides()
    assert made.stage().fruitless == 1
    assert made.condition(ConditionType.STALLED).status == "False"


# Start.


def test_time_in_a_queue_is_no_failure_to_start():
    made = world(evaluation=None, deadlines={"startupSeconds": 60}).has_artifact("pretraining-dataset").decides()
    for name in list(made.pods):
        made.change(name, queued=True, waiting="SchedulingGated")
    made.after(10_000).decides()
    assert made.status.failure is None
    for name in list(made.pods):
        made.change(name, queued=False, placed=made.now)
    assert made.decides().after(59).decides().status.failure is None
    assert made.after(1).decides().status.failure.reason is Reason.STARTUP_DEADLINE_EXCEEDED


@pytest.mark.parametrize("pod", ["a1-w0-g1", "a1-rendezvous"])
def test_a_pod_that_does_not_start_in_time_fails_the_experiment_with_what_it_waits_for(pod):
    made = world(evaluation=None, deadlines={"startupSeconds": 60}).has_artifact("pretraining-dataset").decides()
    made.runs(*[name for name in made.pods if not name.endswith(pod) and (pod == "a1-rendezvous" or "rendezvous" in name)])
    made.change(pod, waiting="ImagePullBackOff: no such image")
    assert made.after(59).decides().last.look_again == 1
    made.after(1).decides()
    failure = made.status.failure
    assert failure.reason is Reason.STARTUP_DEADLINE_EXCEEDED
    assert failure.message.endswith("did not start in 60 s: ImagePullBackOff: no such image")
    assert failure.pod.endswith(pod)
    assert len(made.deleted()) == 3


def test_a_pod_that_says_nothing_of_why_it_waits_fails_all_the_same():
    made = world(evaluation=None, deadlines={"startupSeconds": 60}).decides().after(60).decides()
    assert made.status.failure.message.endswith("no reason given")


def test_a_replacement_may_wait_as_long_as_it_likes_while_enough_others_train():
    made = training(deadlines={"startupSeconds": 60}).ends("w1-g1", None, disrupted=True).decides().after(1000).decides()
    assert made.status.phase is Phase.RUNNING
    assert made.pods[made.full_name("w1-g2")].phase is PodPhase.PENDING
    assert made.condition(ConditionType.WORKERS_READY).reason is Reason.BELOW_REPLICAS


def test_each_deadline_is_waited_for_from_its_own_beginning():
    made = training(deadlines={"startupSeconds": 60, "stallSeconds": 1000}, workers={"min": 2, "replicas": 2})
    made.after(10).ends("w1-g1", None).decides()
    created = made.pods[made.full_name("w1-g2")].created
    made.decides()
    assert made.now + timedelta(seconds=made.last.look_again) == created + timedelta(seconds=60)

"""The operator, its leader, the API server and etcd fail while an experiment runs: nothing is lost and nothing runs twice."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support.experiment import wait_for
from tests.support.kube import Body, kubectl
from tests.support.trial import EVALUATION, PRETRAINING, Trial, none_twice

STEPS = 1500


@pytest.mark.timeout(900)
def test_operators_killed_at_five_points_of_a_life_change_nothing(trial: Trial) -> None:
    pretraining = PRETRAINING | {"steps": STEPS, "checkpointSteps": STEPS // 10}
    document = trial.document(pretraining=pretraining, evaluation=EVALUATION, workers={"min": 1, "replicas": 2, "max": 2})
    with trial.witness() as witness:
        trial.apply(document)
        trial.bed.kill_operators()  # 1: before it has done anything, or while it makes the first pods
        wait_for(lambda: trial.pods(stage="dataset"), 90, "the first pod")
        trial.bed.kill_operators()  # 2: while a pod runs whose end nobody sees
        wait_for(lambda: list(trial.pods(stage="pretraining", role="worker")), 120, "training pods")
        trial.bed.kill_operators()  # 3: while the workers of an attempt are being made
        trial.steps(document, 2, seconds=180)
        victim = trial.worker(0)
        trial.bed.signal(victim, signal.SIGKILL)
        trial.bed.kill_operators()  # 4: while a worker is lost
        trial.replaced(victim)
        trial.steps(document, 2, since=time.time(), seconds=180)
        wait_for(lambda: len(trial.ledger(document)) > 0.8 * STEPS, 240, "nearly the end")
        trial.bed.kill_operators()  # 5: while a stage ends and the next begins
        status = trial.ends("Complete", seconds=300)
    none_twice(witness)
    assert {stage["attempt"] for stage in status["stages"]} == {1}
    assert status["restarts"]["infrastructure"] == 1, "the one worker that was killed"
    assert status["restarts"]["total"] == 1
    assert [line["step"] for line in trial.ledger(document)] == list(range(1, STEPS + 1))
    assert status["results"]["scores"]
    trial.bed.operators_ready()


def test_minutes_without_any_operator_cost_nothing_but_the_replacement(trial: Trial) -> None:
    """Training goes on; what happened meanwhile is found, and counted once, by the operator that comes back."""
    document = trial.train()
    deployment = ["deployment/transfer-operator", "-n", "transfer-operator"]
    with trial.witness() as witness:
        kubectl("scale", *deployment, "--replicas=0")
        wait_for(lambda: not trial.bed.operators(), 60, "no operator is left")
        alone = time.time()
        try:
            victim = trial.worker(1)
            trial.evict(victim)
            trial.apply(trial.document("meanwhile", pretraining=None, evaluation=EVALUATION))
            trial.steps(document, 1, since=alone)
            wait_for(lambda: time.time() - alone > 90, 120, "longer than any Lease, and than Kubernetes waits for a node")
            assert trial.status()["restarts"]["total"] == 0, "nobody writes"
            assert not trial.status("meanwhile")
        finally:
            back = time.time()
            kubectl("scale", *deployment, "--replicas=2")
        trial.replaced(victim)
        trial.steps(document, 2, since=back)
        trial.ends("Complete", "meanwhile")
    none_twice(witness)
    restarts = trial.status()["restarts"]
    assert restarts["total"] == 1, "the pod that was evicted"
    assert trial.stage()["attempt"] == 1
    lines = trial.ledger(document)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "no step was lost or done twice"
    trial.bed.operators_ready()


def test_a_frozen_leader_that_wakes_up_makes_no_second_pod(trial: Trial) -> None:
    document = trial.train()
    trial.bed.operators_ready()
    name = trial.bed.leader()
    frozen = next(pod for pod in trial.bed.operators() if pod["metadata"]["name"] == name)
    with trial.witness() as witness:
        trial.bed.signal(frozen, signal.SIGSTOP)
        try:
            victim = trial.worker(1)
            trial.bed.signal(victim, signal.SIGKILL)  # the frozen one has not seen it, or has it half done
            successor = trial.bed.leader(besides=name)
            trial.replaced(victim)
            trial.steps(document, 2, since=time.time())
            trial.evict(trial.worker(0))
        finally:
            trial.bed.signal(frozen, signal.SIGCONT)
        trial.steps(document, 2, since=time.time() + 2)
        wait_for(lambda: trial.status()["restarts"]["preemption"] == 1, 30, "the eviction is counted")
        trial.bed.operators_ready()
        assert trial.bed.leader() == successor, "the one that was frozen did not take the Lease back"
    none_twice(witness)
    restarts = trial.status()["restarts"]
    assert (restarts["infrastructure"], restarts["preemption"], restarts["total"]) == (1, 1, 2), "each incident counts once"
    assert trial.stage()["attempt"] == 1


@pytest.mark.parametrize("component", ["kube-apiserver", "etcd"])
def test_training_does_not_notice_a_restart_of_the_control_plane(trial: Trial, component: str) -> None:
    document = trial.train()
    uids = {pod["metadata"]["uid"] for pod in trial.pods()}
    with trial.witness() as witness:
        steps = len(trial.ledger(document))
        trial.bed.cluster("restart", component)
        wait_for(lambda: len(trial.ledger(document)) > steps + 20, 60, "more steps")
        assert {pod["metadata"]["uid"] for pod in trial.pods()} == uids, "no pod was touched"
        # The operator still hears: what happens afterwards is seen and healed.
        struck = time.time()
        victim = trial.worker(1)
        trial.bed.signal(victim, signal.SIGKILL)
        trial.replaced(victim)
        trial.steps(document, 2, since=struck + 1)
    none_twice(witness)
    restarts = trial.status()["restarts"]
    assert (restarts["infrastructure"], restarts["total"]) == (1, 1)
    assert trial.stage()["attempt"] == 1
    trial.bed.operators_ready()


def test_a_quiet_experiment_is_not_written_to(trial: Trial) -> None:
    def writes() -> float:
        series: Body = {}
        for pod in trial.bed.operators():
            for name, value in trial.bed.metrics(pod["metadata"]["name"]).items():
                if name.startswith("transfer_operator_api_requests_total") and 'verb="GET"' not in name and "leases" not in name:
                    series[name] = series.get(name, 0.0) + value
        return sum(series.values())

    trial.apply(trial.document(pretraining=None, evaluation=EVALUATION))
    trial.ends("Complete")
    trial.bed.operators_ready()
    looked_at_all(trial)
    before, version = writes(), trial.experiment()["metadata"]["resourceVersion"]
    looked_at_all(trial)
    assert writes() == before
    assert trial.experiment()["metadata"]["resourceVersion"] == version


def looked_at_all(trial: Trial) -> None:
    """Waits until the operators have listed everything once more, and reconciled what they found to be reconciled."""
    begun = time.time()
    wait_for(lambda: time.time() - max(figures(trial, "transfer_operator_resync_age_seconds")) > begun, 120, "a resync")
    wait_for(lambda: not any(figures(trial, "transfer_operator_workqueue_depth")), 30, "nothing else waits")


def figures(trial: Trial, name: str) -> list[float]:
    """The series of that name of all operator pods."""
    pods = [pod["metadata"]["name"] for pod in trial.bed.operators()]
    return [value for pod in pods for series, value in trial.bed.metrics(pod).items() if series.split("{")[0] == name]

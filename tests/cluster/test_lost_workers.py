"""Whatever happens to a worker, the others go on and it is replaced at once, on the budget of its cause."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.support.experiment import wait_for
from tests.support.kube import kubectl
from tests.support.trial import Trial, exit_code, none_twice


@pytest.mark.parametrize("which", ["worker 0", "a random worker"])
def test_a_killed_worker_is_replaced_while_the_others_go_on(trial: Trial, which: str) -> None:
    document = trial.train()
    victim = trial.worker(0 if which == "worker 0" else random.choice([0, 1]))
    with trial.witness() as witness:
        before = trial.round(document)
        trial.bed.signal(victim, signal.SIGKILL)
        trial.heals(document, 2, after=before)
        record = trial.replaced(victim)
    none_twice(witness)
    assert record["cause"] == "infrastructure"
    restarts = trial.status()["restarts"]
    assert (restarts["infrastructure"], restarts["total"]) == (1, 1)
    assert trial.stage()["attempt"] == 1, "the attempt goes on: nobody else was restarted"


def test_five_evictions_in_a_row_are_each_healed_as_fast_as_the_first(trial: Trial) -> None:
    document = trial.train()
    created, healed = [], []
    with trial.witness() as witness:
        for count in range(1, 6):
            victim = trial.worker(1)
            before, struck = trial.round(document), time.time()
            trial.evict(victim)
            trial.replaced(victim)
            name = trial.worker(1)["metadata"]["name"]
            created.append((witness.first("ADDED", name) or struck + 60) - struck)
            healed.append(trial.heals(document, 2, after=before)[1] - struck)
            assert exit_code(witness.last(victim["metadata"]["name"])) == 75, "it saved first"
            trial.waits(lambda status, count=count: status["restarts"]["preemption"] == count, f"{count} preemptions are counted")
    none_twice(witness)
    told = (
        f"replacement created after {[f'{value:.2f}' for value in created]} s, all stepping after {[f'{value:.1f}' for value in healed]} s"
    )
    # Peers wait 10, 20, 40, > 60 s. The bars themselves are in benchmarks/bars.yaml; here no figure may grow.
    assert max(created) < 5, told
    assert max(healed) < 2 * min(healed) + 10, told
    restarts = trial.status()["restarts"]
    assert (restarts["preemption"], restarts["total"] - restarts["preemption"]) == (5, 0)
    assert trial.stage()["lostSteps"] == 0, "who is evicted saves"


def test_the_node_of_worker_0_dies_and_comes_back(trial: Trial) -> None:
    document = trial.train(replicas=3)
    victim = trial.worker(0)
    node = victim["spec"]["nodeName"]
    elsewhere = [index for index in (1, 2) if trial.worker(index)["spec"]["nodeName"] != node]
    assert elsewhere, "workers are spread over nodes"
    rendezvous = trial.rendezvous()["spec"]["nodeName"]
    with trial.witness() as witness:
        struck = time.time()
        with trial.bed.dead_node(node):
            if rendezvous != node:
                trial.steps(document, len(elsewhere), since=struck)
            trial.replaced(victim)
        trial.steps(document, 3, since=time.time())
    none_twice(witness)
    trial.bed.operators_ready()
    restarts = trial.status()["restarts"]
    assert restarts["application"] == 0, "nobody is to blame"
    assert restarts["infrastructure"] >= 1


def test_a_drained_worker_saves_and_moves_to_another_node(trial: Trial) -> None:
    document = trial.train()
    victim = trial.worker(1)
    node = victim["spec"]["nodeName"]
    try:
        with trial.witness() as witness:
            kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s")
            trial.replaced(victim)
            successor = trial.worker(1)
            trial.steps(document, 2, since=time.time())
    finally:
        kubectl("uncordon", node)
    none_twice(witness)
    assert successor["spec"]["nodeName"] != node
    assert exit_code(witness.last(victim["metadata"]["name"])) == 75
    restarts = trial.status()["restarts"]
    assert restarts["preemption"] >= 1
    assert restarts["total"] == restarts["preemption"], "a drain is nobody's fault"
    assert trial.stage()["lostSteps"] == 0
    trial.bed.operators_ready()


def test_a_lost_rendezvous_begins_the_next_attempt_from_the_checkpoint(trial: Trial) -> None:
    document = trial.train()
    wait_for(lambda: len(trial.ledger(document)) > 250, 60, "a checkpoint")
    before = len(trial.ledger(document))
    with trial.witness() as witness:
        struck = time.time()
        trial.bed.signal(trial.rendezvous(), signal.SIGKILL)
        trial.waits(lambda status: status["stages"][1]["attempt"] == 2, "the second attempt")
        trial.steps(document, 2, since=struck + 1, count=20)
    none_twice(witness)
    lines = [line for line in trial.ledger(document, kinds=("step", "lost")) if line["time"] > struck]
    assert min(line["step"] for line in lines) > before - 2 * 200, "it did not begin at the beginning"
    restarts = trial.status()["restarts"]
    assert (restarts["infrastructure"], restarts["total"]) == (1, 1), "the ends of its workers are its echo"


def test_a_worker_that_has_too_little_memory_fails_with_what_to_change(trial: Trial) -> None:
    trial.apply(trial.long(replicas=1, workers={"replicas": 1, "max": 1, "resources": {"limits": {"memory": "320Mi", "cpu": "1"}}}))
    status = trial.ends("Failed", seconds=300)
    assert status["failure"]["reason"] == "OutOfMemory"
    assert "limits.memory" in status["failure"]["message"]
    stage = next(stage for stage in status["stages"] if stage["state"] == "Failed")
    assert stage["outOfMemory"] == 2, "one retry"

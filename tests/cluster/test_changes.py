"""What a user changes while it trains: workers, suspension, other fields, and the end of it."""

from __future__ import annotations

import time

from tests.support.experiment import wait_for
from tests.support.kube import EXPERIMENTS, kubectl
from tests.support.trial import LONG, PRETRAINING, Trial, exit_code, none_twice
from transfer_pod.context import PodContext
from transfer_trainer.ledger import read_ledger


def steady_losses(trial: Trial, document: dict, steps: int) -> list[float]:
    """Losses of the same stage by one process of this machine that nobody disturbs."""
    from transfer_trainer.loop import Training
    from transfer_trainer.parallel import Team

    stage = trial.plan(document)["pretraining"].model_copy(update={"key": "e" * 32})
    training = Training(
        PodContext(stage=stage, storage=trial.storage, pod="steady"), Team(), lambda: training.step >= steps, lambda _: None
    )
    assert not training.run(), "it was asked to stop"
    return [line.loss for line in read_ledger(trial.storage / "work" / stage.kind.value / stage.key / "ledger.jsonl").lines]


def test_scaling_2_3_1_while_training_changes_no_loss(trial: Trial) -> None:
    document = trial.train(replicas=2)
    with trial.witness() as witness:
        for size in (3, 1):
            asked = time.time()
            kubectl("scale", "txp/tiny", "-n", trial.name, f"--replicas={size}")
            trial.steps(document, size, since=asked)
        trial.waits(lambda status: status["workers"]["ready"] == status["workers"]["desired"] == 1, "the columns tell of one worker")
        trial.patch("tiny", suspend=True)
        trial.waits(lambda status: status["phase"] == "Suspended", "saved")
    none_twice(witness)
    lines = trial.ledger(document)
    sizes = [line["world_size"] for line in lines]
    changes = [size for at, size in enumerate(sizes) if at == 0 or size != sizes[at - 1]]
    # A worker whose pod starts much sooner than the other's begins alone: min is 1.
    assert changes[changes.index(2) :] == [2, 3, 1]
    assert trial.status()["restarts"]["total"] == 0, "a resize is no failure"
    assert not trial.ledger(document, kinds=("lost",)), "who leaves saves first"
    steady = steady_losses(trial, document, len(lines))
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    worst = max(abs(line["loss"] / loss - 1) for line, loss in zip(lines, steady, strict=True))
    assert worst < 1e-5


def test_a_suspended_experiment_holds_no_pod_and_goes_on_where_it_was(trial: Trial) -> None:
    document = trial.train()
    with trial.witness() as witness:
        assert "patched" in trial.patch("tiny", suspend=True)
        trial.waits(lambda status: status["phase"] == "Suspended", "suspended")
        wait_for(lambda: not trial.pods(role="worker", stage="pretraining") and not trial.pods(role="rendezvous"), 60, "no pod is left")
        ends = {exit_code(witness.last(one.name)) for one in witness.seen if "-w" in one.name and "pretraining-" in one.name}
        assert ends == {75}, "every worker saved"
        saved = len(trial.ledger(document))
        asked = time.time()
        trial.patch("tiny", suspend=False)
        trial.steps(document, 2, since=asked)
    none_twice(witness)
    again = [line["step"] for line in trial.ledger(document, kinds=("step", "lost")) if line["time"] > asked]
    assert min(again) == saved + 1, "no step was lost"
    assert trial.status()["restarts"]["total"] == 0
    assert trial.condition("Suspended")["status"] == "False"


def test_edits_of_how_it_runs_are_taken_and_of_what_it_computes_refused(trial: Trial) -> None:
    document = trial.train()
    uids = {pod["metadata"]["uid"] for pod in trial.pods(role="worker", stage="pretraining")}
    assert "patched" in trial.patch("tiny", restarts={"application": 7}, deadlines={"stallSeconds": 600}, workers={"max": 4})
    trial.waits(lambda status: status["observedGeneration"] == trial.experiment()["metadata"]["generation"], "the edit is seen")
    said = trial.patch("tiny", pretraining={"learningRate": "9e-4"})
    assert "pretraining cannot be changed" in said
    assert "create another one" in said
    for spec, field in (({"seed": 5}, "seed"), ({"language": "ms"}, "language"), ({"model": {"path": "models/other"}}, "model")):
        assert f"{field} cannot be changed" in trial.patch("tiny", **spec)
    assert "replicas is larger than max" in trial.patch("tiny", workers={"replicas": 9})
    said = kubectl("scale", "txp/tiny", "-n", trial.name, "--replicas=9", check=False)
    assert "replicas is larger than max" in said
    trial.steps(document, 2, since=time.time())
    assert {pod["metadata"]["uid"] for pod in trial.pods(role="worker", stage="pretraining")} == uids, "no edit disturbed a worker"
    restarts = trial.status()["restarts"]
    assert (restarts["total"], restarts["saved"]) == (0, 0)


def test_deleting_while_it_runs_leaves_the_storage_and_nothing_else(trial: Trial) -> None:
    document = trial.train()
    kubectl("delete", "txp", "tiny", "-n", trial.name, "--wait=true", "--timeout=30s")
    wait_for(lambda: not trial.pods(), 90, "no pod is left")
    wait_for(lambda: not trial.kube.list(f"/api/v1/namespaces/{trial.name}/services"), 20, "no Service is left")
    assert trial.kube.get(trial.path("tiny")) is None
    kinds = kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    left = kubectl("get", ",".join(kind for kind in kinds if not kind.startswith("events")), "-n", trial.name, "-o", "name", check=False)
    ours = [line for line in left.splitlines() if "tiny" in line]
    assert not ours, ours
    # Saved in the grace that the pods have: the same experiment goes on from there.
    saved = len(trial.ledger(document))
    assert saved
    asked = time.time()
    trial.apply(document)
    trial.steps(document, 2, since=asked)
    again = [line["step"] for line in trial.ledger(document, kinds=("step", "lost")) if line["time"] > asked]
    assert min(again) == saved + 1


def test_a_worker_that_finds_no_room_joins_when_there_is_some(trial: Trial) -> None:
    """Elastic start: with `min` workers it begins, and the columns tell of the one that waits."""
    nodes = len(trial.kube.list("/api/v1/nodes"))
    resources = {"requests": {"cpu": "1200m", "memory": "256Mi"}, "limits": {"cpu": "1200m", "memory": "2Gi"}}
    workers = {"min": 1, "replicas": nodes + 1, "max": nodes + 1, "resources": resources}
    document = trial.document(pretraining=PRETRAINING | LONG, workers=workers)
    trial.apply(document)
    trial.steps(document, nodes, seconds=180)
    condition = trial.condition("WorkersReady")
    assert (condition["status"], condition["reason"]) == ("False", "BelowReplicas")
    assert "Insufficient cpu" in condition["message"]
    stage = trial.stage()
    assert (stage["attempt"], len(stage["workers"])) == (1, nodes + 1)
    assert trial.kube.get(f"{EXPERIMENTS}/namespaces/{trial.name}/transferexperiments/tiny/scale")["status"]["replicas"] == nodes

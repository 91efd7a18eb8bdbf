"""What administrators and half-broken nodes do to an experiment that trains: it says what it waits for, and goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.support.experiment import wait_for
from tests.support.kube import Body, kubectl
from tests.support.trial import LONG, PRETRAINING, Trial, exit_code, none_twice

CRD = "transferexperiments.transfer-operator.dev"
PHASES = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/phase/enum"


def test_a_suspension_does_not_wait_for_a_node_that_does_not_answer(trial: Trial) -> None:
    document = trial.train(replicas=3)
    store = trial.rendezvous()["spec"]["nodeName"]
    silent = next(pod for pod in map(trial.worker, range(3)) if pod["spec"]["nodeName"] != store)
    with trial.witness() as witness:
        with trial.bed.dead_node(silent["spec"]["nodeName"]):
            trial.patch("tiny", suspend=True)
            trial.waits(lambda status: status["phase"] == "Suspended", "suspended", seconds=240)
            message = trial.stage()["message"]
            assert "the node does not answer" in message
            assert silent["metadata"]["name"].split("-", 1)[1] in message
        asked = time.time()
        trial.patch("tiny", suspend=False)
        trial.steps(document, 3, since=asked, seconds=180)
    none_twice(witness)
    assert trial.status()["restarts"]["total"] == 0, "none that goes in a suspension is an incident"
    trial.bed.operators_ready()


def test_a_worker_that_is_cut_off_and_trains_on_ends_when_it_finds_its_successor(trial: Trial) -> None:
    """Its kubelet is frozen: for the cluster the node is lost, while the worker computes and has the storage."""
    document = trial.document(pretraining=PRETRAINING | LONG, workers={"min": 1, "replicas": 1, "max": 1})
    trial.apply(document)
    trial.steps(document, 1, seconds=180)
    old = trial.worker(0)
    kubelet = old["spec"]["nodeName"].replace("node", "kubelet")
    with trial.witness() as witness:
        trial.bed.cluster("freeze", kubelet)
        try:
            trial.replaced(old)
            new = trial.worker(0)
            trial.steps(document, 1, since=time.time())
            wait_for(lambda: not trial.bed.processes(old), 120, "the one that is cut off has ended")
        finally:
            trial.bed.cluster("thaw", kubelet)
            wait_for(lambda: trial.bed.node_is_free(old["spec"]["nodeName"]), 90, "its node is back")
        trial.steps(document, 1, since=time.time())
    assert exit_code(witness.last(old["metadata"]["name"])) in (78, None), "its node tells, unless the pod was given up before"
    assert new["metadata"]["uid"] == trial.worker(0)["metadata"]["uid"], "its end disturbs nobody"
    restarts = trial.status()["restarts"]
    assert restarts["application"] == 0
    assert restarts["total"] == 1
    lines = trial.ledger(document)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step counts once"
    trial.bed.operators_ready()


def test_pods_that_were_orphaned_are_named_and_wait_for_a_person(trial: Trial) -> None:
    document = trial.train(replicas=1)
    orphans = {pod["metadata"]["name"] for pod in trial.pods()}  # also of what is complete: a new experiment would make it again
    kubectl("delete", "txp", "tiny", "-n", trial.name, "--cascade=orphan", "--timeout=60s")
    wait_for(lambda: all(not pod["metadata"].get("ownerReferences") for pod in trial.pods()), 60, "they are orphans")
    trial.apply(document)
    condition = wait_for(lambda: _told(trial, "does not belong to this experiment"), 90, "what is in the way is told")
    assert any(name in condition["message"] for name in orphans)
    assert "kubectl delete pod" in condition["message"]
    assert orphans <= {pod["metadata"]["name"] for pod in trial.pods()}, "what is not ours is not removed"
    asked = time.time()
    kubectl("delete", "pods", "-n", trial.name, "--all")
    trial.steps(document, 1, since=asked, seconds=180)


def _told(trial: Trial, words: str) -> Body | None:
    conditions = trial.status().get("conditions", [])
    return next((one for one in conditions if words in one.get("message", "")), None)


@pytest.fixture
def loose(trial: Trial) -> Iterator[None]:
    """The resource as another version might know it: any phase is taken."""
    phases = json.loads(kubectl("get", "crd", CRD, "-o", "json"))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    allowed = phases["properties"]["status"]["properties"]["phase"]["enum"]
    kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps([{"op": "remove", "path": PHASES}]))
    yield
    kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps([{"op": "add", "path": PHASES, "value": allowed}]))


def _set_phase(trial: Trial, phase: str) -> str:
    patch = json.dumps({"status": {"phase": phase}})
    return kubectl("patch", "txp", "tiny", "-n", trial.name, "--subresource=status", "--type=merge", "-p", patch, check=False)


def test_a_status_that_says_what_cannot_be_is_refused(trial: Trial) -> None:
    trial.train(replicas=1)
    assert 'status.phase: Unsupported value: "Elsewhere"' in _set_phase(trial, "Elsewhere")


def test_a_status_of_another_version_is_left_alone_until_it_is_mended(trial: Trial, loose: None) -> None:
    document = trial.train(replicas=1)
    uids = {pod["metadata"]["uid"] for pod in trial.pods()}

    def broken() -> bool:
        _set_phase(trial, "Elsewhere")  # the operator may just be writing its own
        events = trial.kube.list(f"/api/v1/namespaces/{trial.name}/events")
        return any(event["reason"] == "StatusUnreadable" and "--subresource=status" in event["message"] for event in events)

    wait_for(broken, 60, "it is told")
    steps = len(trial.ledger(document))
    wait_for(lambda: len(trial.ledger(document)) > steps + 100, 60, "it trains on")
    assert trial.status()["phase"] == "Elsewhere", "nobody writes over it"
    assert {pod["metadata"]["uid"] for pod in trial.pods()} == uids
    assert "patched" in _set_phase(trial, "Running")
    victim = trial.worker(0)
    trial.evict(victim)
    trial.replaced(victim)
    trial.steps(document, 1, since=time.time())

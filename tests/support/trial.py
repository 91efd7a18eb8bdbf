"""One namespace with a storage of its own, and the experiments in it: what a user sees of them, and what their pods leave behind."""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.support.experiment import wait_for, write_instructions, write_texts
from tests.support.kube import EXPERIMENTS, Body, Kube, Witness, kubectl
from tests.support.testbed import TRIAL, Testbed, as_json
from tests.support.tiny import save_tiny_model
from transfer_api.load import experiment_from
from transfer_api.stage import StageKind, StagePlan, plan_stages

T = TypeVar("T")
CLAIM = "experiments"
USER = 65532
LABEL = "transfer-operator.dev"
RESOURCES: dict[str, Any] = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}}
PRETRAINING: dict[str, Any] = {
    "steps": 24, "sequenceLength": 64, "globalBatchTokens": 448, "learningRate": "1e-3", "precision": "Float32", "schedule": "Constant",
    "checkpointSteps": 8, "maxEpochs": 1000,
    "mixture": [{"path": "texts/id.jsonl", "weight": 3}, {"path": "texts/en.jsonl", "weight": 1, "language": "en"}],
}  # fmt: skip
TUNING: dict[str, Any] = {
    "steps": 6, "sequenceLength": 192, "globalBatchTokens": 768, "learningRate": "1e-3", "precision": "Float32",
    "lora": {"rank": 4, "alpha": 8}, "data": [{"path": "instructions/id.jsonl"}],
}  # fmt: skip
EVALUATION: dict[str, Any] = {"suites": ["perplexity"], "texts": [{"name": "heldout", "path": "texts/heldout.jsonl"}]}
LONG: dict[str, Any] = {"steps": 60_000, "checkpointSteps": 200}
"""Changes of PRETRAINING that make it last until the test has seen what it wants to see."""


@dataclass
class Trial:
    """A namespace, its claim, and the folder behind it."""

    bed: Testbed
    name: str = field(default_factory=lambda: f"txp-{uuid.uuid4().hex[:8]}")

    @property
    def kube(self) -> Kube:
        return self.bed.kube

    @property
    def storage(self) -> Path:
        return self.bed.storage / self.name

    @property
    def pods_path(self) -> str:
        return f"/api/v1/namespaces/{self.name}/pods"

    def path(self, experiment: str = "", sub: str = "") -> str:
        """Address of an experiment, or of all."""
        return "/".join(part for part in (f"{EXPERIMENTS}/namespaces/{self.name}/transferexperiments", experiment, sub) if part)

    # -- the place

    def open(self) -> Trial:
        """Makes namespace, volume and claim, and puts a tiny model and texts into it."""
        self.fill()
        self.own()
        restricted = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": restricted | {TRIAL: "true"}}}
        self.kube.ask("POST", "/api/v1/namespaces", space)
        self.claim(CLAIM)
        return self

    def claim(self, name: str) -> None:
        """A claim that is bound to the folder."""
        volume = {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{self.name}-{name}"},
            "spec": {
                "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteMany"], "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "", "claimRef": {"namespace": self.name, "name": name},
                "hostPath": {"path": str(self.storage), "type": "Directory"},
            },
        }  # fmt: skip
        claim = {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": self.name},
            "spec": {
                "accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": f"{self.name}-{name}",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }  # fmt: skip
        self.kube.ask("POST", "/api/v1/persistentvolumes", volume)
        self.kube.ask("POST", f"/api/v1/namespaces/{self.name}/persistentvolumeclaims", claim)

    def fill(self) -> None:
        """A tiny model, texts of two languages, instructions, and a text that is held out."""
        save_tiny_model(self.storage / "models" / "tiny")
        write_texts(self.storage / "texts" / "id.jsonl", 1, 400)
        write_texts(self.storage / "texts" / "en.jsonl", 2, 200)
        write_texts(self.storage / "texts" / "heldout.jsonl", 3, 12)
        write_instructions(self.storage / "instructions" / "id.jsonl", 4, 60)

    def own(self) -> None:
        """Gives the folder to the user that pods run as: a hostPath volume keeps its owner."""
        os.chown(self.storage, USER, USER)
        for path in self.storage.rglob("*"):
            os.chown(path, USER, USER)

    def close(self) -> None:
        """Removes everything, without any grace, so that the next test has the machine for itself."""
        for path in (self.path(), self.pods_path):
            for body in self.kube.list(path):
                self.kube.delete(f"{path}/{body['metadata']['name']}", grace=0)
        wait_for(lambda: not self.kube.list(self.pods_path), 60, f"the pods of {self.name} are gone")
        self.kube.delete(f"/api/v1/namespaces/{self.name}")
        for volume in self.kube.list("/api/v1/persistentvolumes"):
            if (volume["spec"].get("claimRef") or {}).get("namespace") == self.name:
                self.kube.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
        shutil.rmtree(self.storage, ignore_errors=True)

    # -- experiments

    def document(self, experiment: str = "tiny", **spec: Any) -> Body:
        """An experiment that pretrains a tiny model; fields of its spec are replaced or (None) removed."""
        base: dict[str, Any] = {
            "model": {"path": "models/tiny"}, "language": "id", "storage": {"claim": CLAIM}, "pretraining": PRETRAINING,
            "workers": {"min": 1, "replicas": 1, "max": 3},
        }  # fmt: skip
        wanted = copy.deepcopy({name: value for name, value in (base | spec).items() if value is not None})
        wanted["workers"] = {"resources": RESOURCES} | wanted["workers"]
        return {
            "apiVersion": "transfer-operator.dev/v1alpha1", "kind": "TransferExperiment",
            "metadata": {"name": experiment, "namespace": self.name}, "spec": wanted,
        }  # fmt: skip

    def long(self, experiment: str = "tiny", replicas: int = 2, **changes: Any) -> Body:
        """An experiment that trains until somebody ends it."""
        workers = {"min": 1, "replicas": replicas, "max": 3} | changes.pop("workers", {})
        return self.document(experiment, pretraining=PRETRAINING | LONG | changes, workers=workers)

    def apply(self, document: Body, check: bool = True) -> str:
        """As a user does it."""
        return kubectl("apply", "-f", "-", stdin=as_json(document), check=check)

    def train(self, replicas: int = 2, **changes: Any) -> Body:
        """Applies an experiment that trains for long, and waits until all of its workers step."""
        document = self.long(replicas=replicas, **changes)
        self.apply(document)
        self.steps(document, replicas, seconds=180)
        return document

    def patch(self, experiment: str, **spec: Any) -> str:
        """A merge patch of the spec, by kubectl; returns what it says, also when it is refused."""
        text = json.dumps({"spec": spec})
        return kubectl("patch", "txp", experiment, "-n", self.name, "--type=merge", "-p", text, check=False)

    def experiment(self, experiment: str = "tiny") -> Body:
        """The whole object."""
        return self.kube.ask("GET", self.path(experiment))

    def status(self, experiment: str = "tiny") -> Body:
        """Its status; empty as long as there is none."""
        return self.experiment(experiment).get("status") or {}

    def stage(self, name: str = "pretraining", experiment: str = "tiny") -> Body:
        """Status of one stage."""
        return next((stage for stage in self.status(experiment).get("stages", []) if stage["name"] == name), {})

    def condition(self, kind: str, experiment: str = "tiny") -> Body:
        """One condition."""
        return next((one for one in self.status(experiment).get("conditions", []) if one["type"] == kind), {})

    def ends(self, phase: str, experiment: str = "tiny", seconds: float = 240) -> Body:
        """Waits for the end of an experiment, which must be the given one; returns the status."""

        def look() -> Body | None:
            status = self.status(experiment)
            return status if status.get("phase") in (phase, "Complete", "Failed") else None

        found = wait_for(look, seconds, f"{experiment} is {phase}")
        assert found["phase"] == phase, found.get("failure") or found
        return found

    def waits(self, condition: Callable[[Body], T | None], what: str, experiment: str = "tiny", seconds: float = 120) -> T:
        """Waits until something is true of a status."""
        return wait_for(lambda: condition(self.status(experiment)), seconds, f"{experiment}: {what}")

    def plan(self, document: Body) -> dict[str, StagePlan]:
        """Its stages by name, as the operator cuts them."""
        return {stage.name: stage for stage in plan_stages(experiment_from(document).spec)}

    # -- pods

    def pods(self, **labels: str) -> list[Body]:
        """Pods by our labels (`role="worker"`)."""
        chosen = ",".join(f"{LABEL}/{name.replace('_', '-')}={value}" for name, value in labels.items())
        return self.kube.list(self.pods_path, **({"labelSelector": chosen} if chosen else {}))

    def worker(self, index: int, experiment: str = "tiny", stage: str = "pretraining") -> Body:
        """The pod of a worker index that runs, in its newest generation; waits for it."""

        def look() -> Body | None:
            found = [pod for pod in self.pods(experiment=experiment, stage=stage, role="worker", index=str(index)) if lives(pod)]
            return found[0] if found and found[0]["status"].get("phase") == "Running" else None

        return wait_for(look, 90, f"worker {index} of {experiment} runs")

    def rendezvous(self) -> Body:
        """The rendezvous pod that runs; waits for it."""
        return wait_for(lambda: next(iter(pod for pod in self.pods(role="rendezvous") if lives(pod)), None), 60, "a rendezvous pod")

    def replaced(self, old: Body) -> Body:
        """The record of the worker whose pod was struck, once its successor is recorded: of its next generation, or of the next attempt."""
        index, attempt, generation = (int(old["metadata"]["labels"][f"{LABEL}/{name}"]) for name in ("index", "attempt", "generation"))
        kind, experiment = (old["metadata"]["labels"][f"{LABEL}/{name}"] for name in ("stage", "experiment"))

        def look(status: Body) -> Body | None:
            stage = next(stage for stage in status["stages"] if stage["name"] == kind)
            worker = next((one for one in stage["workers"] if one["index"] == index), None)
            return worker if worker and (stage["attempt"], worker["generation"]) > (attempt, generation) else None

        return self.waits(look, f"worker {index} gets a successor", experiment)

    def evict(self, pod: Body) -> None:
        """By the eviction API, as a drain does it."""
        meta = {"name": pod["metadata"]["name"], "namespace": self.name}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
        self.kube.ask("POST", f"{self.pods_path}/{meta['name']}/eviction", body)

    def witness(self) -> Witness:
        """Of the pods of the namespace."""
        return Witness(self.kube, self.pods_path)

    # -- what pods leave behind

    def ledger(self, document: Body, stage: str = "pretraining", kinds: tuple[str, ...] = ("step",)) -> list[Body]:
        """Lines of a training stage's ledger, finished or not."""
        plan = self.plan(document)[stage]
        for folder in ("artifacts", "work"):
            path = self.storage / folder / plan.kind.value / plan.key / "ledger.jsonl"
            if path.exists():
                lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
                return [entry for line in lines if (entry := json.loads(line))["kind"] in kinds]
        return []

    def steps(self, document: Body, size: int, count: int = 3, since: float = 0.0, seconds: float = 120) -> float:
        """Waits for steps of so many processes after a time; returns when the first of them was done."""

        def look() -> float | None:
            lines = self.ledger(document, kinds=("step", "lost"))
            found = sorted(line["time"] for line in lines if line["world_size"] == size and line["time"] > since)
            return found[0] if len(found) >= count else None

        return wait_for(look, seconds, f"{count} steps of {size} processes")

    def round(self, document: Body) -> int:
        """The round of the last step."""
        return int(self.ledger(document)[-1]["round"])

    def heals(self, document: Body, size: int, after: int, seconds: float = 120) -> tuple[float, float]:
        """Waits until it trains with so many processes in a round later than `after`.

        Returns:
            When the first step of a later round was done, and when the first of three by so many. Both are the same where a replacement
            comes before the others have done any without it.
        """

        def look() -> tuple[float, float] | None:
            lines = [line for line in self.ledger(document, kinds=("step", "lost")) if line["round"] > after]
            full = sorted(line["time"] for line in lines if line["world_size"] == size)
            return (min(line["time"] for line in lines), full[0]) if len(full) >= 3 else None

        return wait_for(look, seconds, f"3 steps of {size} processes after round {after}")

    def artifact(self, kind: StageKind, key: str) -> Path:
        """Folder of a finished artifact."""
        return self.storage / "artifacts" / kind.value / key

    # -- what went wrong

    def describe(self) -> str:
        """Everything that explains a failure."""
        told = []
        try:
            for title, text in self._told():
                told.append(f"--- {title}\n{text}")
        except Exception as error:
            told.append(f"--- and then the cluster did not answer\n{error}")
        return "\n".join(told)

    def _told(self) -> Iterator[tuple[str, str]]:
        for body in self.kube.list(self.path()):
            status = body.get("status") or {}
            yield f"status of {body['metadata']['name']}", as_json(status)[:6000]
        yield "pods", kubectl("get", "pods", "-n", self.name, "-o", "wide", check=False)
        yield "events", kubectl("get", "events", "-n", self.name, "--sort-by=.lastTimestamp", check=False)[-6000:]
        for pod in self.kube.list(self.pods_path):
            name = pod["metadata"]["name"]
            yield f"log of {name}", kubectl("logs", name, "-n", self.name, "--tail=25", check=False)[-3000:]
        selector = "app.kubernetes.io/name=transfer-operator"
        yield "operator", kubectl("logs", "-n", "transfer-operator", "-l", selector, "--tail=40", "--prefix", check=False)[-8000:]
        yield "nodes", kubectl("get", "nodes", check=False)


def lives(pod: Body) -> bool:
    """Whether a pod runs or may still run, and nobody asked it to go."""
    return "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") in ("Pending", "Running")


def exit_code(pod: Body | None) -> int | None:
    """Of its container, once it has ended."""
    statuses = (pod or {}).get("status", {}).get("containerStatuses") or [{}]
    return statuses[0].get("state", {}).get("terminated", {}).get("exitCode")


def none_twice(witness: Witness) -> None:
    """No pod name was used twice, and no worker index ever had two pods that were meant to live."""
    names = [one.name for one in witness.created()]
    assert len(names) == len(set(names)), "a pod was made a second time"
    living: dict[tuple[str, ...], set[str]] = {}
    for one in witness.seen:
        labels = one.body["metadata"]["labels"]
        place = tuple(labels[f"{LABEL}/{name}"] for name in ("experiment", "stage-key", "role", "index"))
        goes = one.type == "DELETED" or "deletionTimestamp" in one.body["metadata"]
        # Its container may have ended a moment before its phase says so.
        ended = one.body["status"].get("phase") in ("Succeeded", "Failed") or exit_code(one.body) is not None
        (set.discard if goes or ended else set.add)(living.setdefault(place, set()), one.name)
        assert len(living[place]) <= 1, f"two pods live for {place}: {living[place]}"

"""A cluster in memory with an operator that may be killed, frozen and begun anew, and what must hold at every single write."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from tests.operator.api_server import ApiServer, Fault, Request, Wire
from tests.operator.builders import EVALUATION, TRAINING
from tests.operator.cluster import check_form, check_successor
from tests.operator.kubelet import Kubelet
from tests.operator.virtual_time import clock, now
from transfer_api.progress import Progress
from transfer_api.spec import API_VERSION
from transfer_api.status import ExperimentStatus
from transfer_operator import manifest
from transfer_operator.decide import Role
from transfer_operator.health import Health
from transfer_operator.lease import Lease
from transfer_operator.manifest import parse_name
from transfer_operator.process import Operator
from transfer_operator.reconcile import Reconciler
from transfer_operator.settings import OperatorSettings

Body = dict[str, Any]
NAMESPACE = "lab"
SPEC = {
    "model": {"path": "model"}, "language": "id", "storage": {"claim": "experiments"}, **TRAINING, **EVALUATION,
    "workers": {"min": 1, "replicas": 2, "max": 4},
}  # fmt: skip


class VirtualOperator(Operator):
    """The operator as it is, but for its clocks, its connection and its watch."""

    def __init__(self, rig: Rig, identity: str, **settings: Any) -> None:
        given = OperatorSettings(identity=identity, concurrency=4, **{"leader_election": False, "grace_seconds": 30, **settings})
        super().__init__(given)
        self.rig = rig
        self.cluster = self.wire = Wire(rig.server, identity, self._may_write, rig.fault)
        self.lease = Lease(
            self.cluster, namespace=NAMESPACE, name=given.lease_name, identity=identity, seconds=given.lease_seconds,
            renew=given.renew_seconds, clock=clock,
        )  # fmt: skip
        self.health = Health(given, clock=clock)
        self.board: dict[str, Progress] = {}
        self.reconciler = Reconciler(self.cluster, self.view, self.queue, self.board, given, clock=clock, now=now)

    def _work(self) -> Iterator[tuple[str, Awaitable[object]]]:
        for name, work in super()._work():
            if name in ("kopf", "progress"):
                close = getattr(work, "close", None)
                assert close is not None
                close()
            else:
                yield name, work
        yield "kopf", self._subscribe()
        yield "progress", self._ask()

    async def _subscribe(self) -> None:
        """As Kopf: everything that is there first, then what happens."""

        def notify(plural: str, kind: str, body: Body) -> None:
            self.heard[plural] += 1
            if plural == "pods":
                keys = self.view.drop_pod(body) if kind == "DELETED" else self.view.put_pod(body)
            else:
                keys = self.view.drop_experiment(body) if kind == "DELETED" else self.view.put_experiment(body)
            for key in keys:
                self.queue.add(key)

        self.rig.server.watchers.append(notify)
        try:
            for plural in ("transferexperiments", "pods"):
                for body in self.rig.server.every(plural):
                    notify(plural, "ADDED", body)
            await asyncio.get_running_loop().create_future()
        finally:
            self.rig.server.watchers.remove(notify)

    async def _ask(self) -> None:
        """As the progress board: what pods tell, every few seconds."""
        last: dict[str, dict[str, Progress]] = {}
        while True:
            await asyncio.sleep(self.settings.progress_seconds)
            for key, known in self.view.experiments.items():
                uids = [pod["metadata"]["uid"] for pod in self.view.pods_of(key)]
                told = {uid: self.rig.kubelet.told[uid] for uid in uids if uid in self.rig.kubelet.told}
                self.board |= told
                if told != last.get(known.uid):
                    last[known.uid] = told
                    self.queue.add(key)


class Rig:
    """The cluster, its one operator (and whoever comes after it) and its user."""

    def __init__(self, fault: Fault = lambda request: None, **settings: Any) -> None:
        self.server = ApiServer()
        self.kubelet = Kubelet(self.server)
        self.fault = fault
        self.settings = settings
        self.operator: VirtualOperator | None = None
        self.running: asyncio.Task[int] | None = None
        self.kills = 0
        self.created: Counter[str] = Counter()
        """How often a pod of a name was made for an experiment, by UID of the experiment and name of the pod."""
        self._statuses: dict[str, ExperimentStatus] = {}
        self.server.on_commit.append(self._check)

    # The operator.

    def start(self, identity: str = "one", **settings: Any) -> VirtualOperator:
        """Starts an operator with an empty memory."""
        self.operator = VirtualOperator(self, identity, **{**self.settings, **settings})
        self.running = asyncio.create_task(self.operator._lead())
        return self.operator

    async def stop(self) -> None:
        """Ends it at once, whatever it does: as SIGKILL."""
        assert self.operator is not None
        assert self.running is not None
        self.operator.wire.dead.set()
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running
        self.running = None

    async def _undertake(self) -> None:
        """Begins a new operator a second after one was killed, as the kubelet does."""
        while True:
            assert self.operator is not None
            await self.operator.wire.dead.wait()
            if self.running is not None:
                await self.stop()
                self.kills += 1
            await asyncio.sleep(1)
            self.start()

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[Rig]:
        """A cluster that runs, with its operator."""
        nodes = asyncio.create_task(self.kubelet.work())
        self.start()
        undertaker = asyncio.create_task(self._undertake())
        try:
            yield self
            assert not nodes.done(), nodes.exception()
            assert self.running is None or not self.running.done(), "the operator has ended"
        finally:
            undertaker.cancel()
            nodes.cancel()
            if self.running is not None:
                await self.stop()
            await asyncio.sleep(0)

    # The user.

    def apply(self, name: str = "tiny", **spec: Any) -> Body:
        """Makes an experiment; None leaves a part of its spec out."""
        whole = {key: value for key, value in {**SPEC, **spec}.items() if value is not None}
        body = {"apiVersion": API_VERSION, "kind": "TransferExperiment", "metadata": {"name": name}, "spec": whole}
        return self.server.create("transferexperiments", NAMESPACE, body)

    def experiment(self, name: str = "tiny") -> Body | None:
        """The object as it is."""
        return self.server.objects.get(("transferexperiments", NAMESPACE, name))

    def status(self, name: str = "tiny") -> ExperimentStatus:
        """Its status."""
        body = self.experiment(name)
        assert body is not None
        return self._status_of(body)

    def _status_of(self, body: Body) -> ExperimentStatus:
        """Read once for each state of the object: tests look four times a second."""
        revision = body["metadata"]["resourceVersion"]
        if revision not in self._statuses:
            self._statuses[revision] = ExperimentStatus.model_validate(body.get("status") or {})
        return self._statuses[revision]

    def pods(self, name: str = "tiny", *, live: bool = False) -> list[Body]:
        """Its pods; `live`: those that have not ended."""
        mine = [pod for pod in self.server.every("pods") if pod["metadata"]["labels"][manifest.EXPERIMENT] == name]
        return [pod for pod in mine if not live or pod["status"]["phase"] in ("Pending", "Running")]

    def worker(self, index: int, generation: int = 1, name: str = "tiny", kind: str = "pretraining") -> Body | None:
        """A worker's pod."""
        for pod in self.pods(name):
            found = parse_name(pod)
            assert found is not None
            if (found.role, found.kind, found.index, found.generation) == (Role.WORKER, kind, index, generation):
                return pod
        return None

    async def until(self, condition: Callable[[], object], seconds: float = 600, what: str = "") -> None:
        """Waits for a condition, looking four times a second."""
        deadline = clock() + seconds
        while not condition():
            if clock() >= deadline:
                told = self.status() if self.experiment() is not None else "no experiment"
                raise AssertionError(f"{what or condition}: not within {seconds} s; {told}; {sorted(self.server.objects)}")
            await asyncio.sleep(0.25)

    async def ends(self, *names: str) -> None:
        """Waits until experiments are Complete or Failed, and their pods have ended."""
        for name in names or ("tiny",):
            await self.until(lambda name=name: self.status(name).phase.terminal and not self.pods(name, live=True), what=f"{name} ends")

    async def is_quiet(self, seconds: float = 60) -> None:
        """Nothing is written any more."""
        await asyncio.sleep(5)
        before = list(self.server.writes)
        await asyncio.sleep(seconds)
        assert self.server.writes == before, [str(write) for write in self.server.writes[len(before) :]]

    # What must hold whatever happens.

    def _check(self, plural: str, old: Body | None, new: Body | None) -> None:
        if plural == "pods" and old is None and new is not None:
            self._check_pod(new)
        if plural == "transferexperiments" and old is not None and new is not None and old.get("status") != new.get("status"):
            before, after = self._status_of(old), self._status_of(new)
            check_successor(before, after)
            check_form(after)

    def _check_pod(self, new: Body) -> None:
        name = parse_name(new)
        assert name is not None
        owner = new["metadata"]["ownerReferences"][0]["uid"]
        made = f"{owner} {new['metadata']['name']}"
        self.created[made] += 1
        assert self.created[made] == 1, f"{made} is made a second time"
        for pod in self.server.every("pods"):
            other = parse_name(pod)
            assert other is not None
            lives = pod["status"]["phase"] in ("Pending", "Running") and "deletionTimestamp" not in pod["metadata"]
            alike = (other.stage, other.role, other.index) == (name.stage, name.role, name.index)
            theirs = pod["metadata"]["ownerReferences"][0]["uid"] == owner
            twice = pod["metadata"]["uid"] != new["metadata"]["uid"] and lives and alike and theirs
            assert not twice, f"{new['metadata']['name']} is made while {pod['metadata']['name']} lives"


def outcome(rig: Rig, name: str = "tiny") -> Body:
    """What has come of an experiment, without times and speeds."""
    status = rig.status(name)
    return {
        "phase": status.phase,
        "failure": status.failure,
        "restarts": status.restarts.model_dump(),
        "results": status.results,
        "conditions": [(one.type, one.status, one.reason) for one in status.conditions],
        "stages": [
            {
                "stage": stage.name, "state": stage.state, "attempt": stage.attempt, "restarts": stage.restarts.model_dump(),
                "artifact": stage.artifact, "workers": [(one.index, one.generation, one.cause, one.retired) for one in stage.workers],
            }
            for stage in status.stages
        ],
        # One pod of a data set does what another would have done, so which of them were made may differ.
        "pods": sorted((pod["metadata"]["name"], pod["status"]["phase"]) for pod in rig.pods(name) if not _of_data(pod)),
    }  # fmt: skip


def _of_data(pod: Body) -> bool:
    return "-dataset-" in pod["metadata"]["name"]


def counted(writes: list[Request]) -> Counter[str]:
    """Writes by verb and plural."""
    return Counter(f"{write.verb} {write.plural}" for write in writes)

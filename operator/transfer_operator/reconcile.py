"""One look at one experiment: see, decide, write the status, act, tell.

Everything is asked for again as long as it is not so; nothing is remembered but what would be cheap to lose (when a status was last
written, when a pod was last refused). Errors go up to the work queue, which comes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from transfer_api.progress import ArtifactReference, Outcome, Progress, ResultMessage
from transfer_api.spec import API_VERSION, ExperimentSpec, TransferExperiment
from transfer_api.stage import StageKind, StagePlan
from transfer_api.status import (
    Cause,
    Condition,
    ConditionType,
    ExperimentStatus,
    Phase,
    Reason,
    StageState,
    StageStatus,
    WorkerRecord,
    WorkersStatus,
    second,
)
from transfer_operator import manifest, metrics
from transfer_operator.child import NAMESAKE_AGAIN_S, NotMadeError, Obstacle, Refused, make
from transfer_operator.cluster import EVENTS, EXPERIMENTS, PODS, SERVICES, Body, Cluster, ClusterError, NotLeaderError, Resource
from transfer_operator.decide import CreatePod, Decision, DeletePod, Event, Pod, PodPhase, Role, Settings, Snapshot, decide
from transfer_operator.decide.snapshot import PodName
from transfer_operator.decide.stage import is_silent
from transfer_operator.observe import observe
from transfer_operator.queue import WorkQueue
from transfer_operator.settings import OperatorSettings
from transfer_operator.view import Key, Known, View, key_of

logger = logging.getLogger(__name__)

CONFLICT_AGAIN_S = 0.05


@dataclass
class Memory:
    """What is remembered of one experiment while this process leads. All of it may be lost."""

    uid: str
    written: float = float("-inf")
    """When the status was last written."""
    refused: dict[str, Refused] = field(default_factory=dict)
    """Pods that cannot be made, by name."""
    served: dict[str, float] = field(default_factory=dict)
    """When the Service of a rendezvous pod was last seen, by the pod's UID."""
    unserved: dict[str, Refused] = field(default_factory=dict)
    """Rendezvous pods whose Service cannot be made, by name."""
    seen: set[str] = field(default_factory=set)
    """Names of pods that were seen: one that vanishes before a status says so is lost all the same, and its name is used up."""
    unreadable: str = ""
    """Why its status cannot be read, as it was last told."""
    resized: float | None = None
    """When another number of workers was last wanted and not yet reached."""


class Reconciler:
    """Takes keys from the queue and makes the cluster what `decide` says.

    Args:
        cluster: the API server.
        view: what is known of it.
        queue: keys that are due.
        progress: last answer of each pod to `/progress`, by UID.
        settings: of the operator.
        clock: seconds that never go back.
        now: the time.
    """

    def __init__(
        self, cluster: Cluster, view: View, queue: WorkQueue[Key], progress: Mapping[str, Progress], settings: OperatorSettings, *,
        clock: Callable[[], float] = time.monotonic, now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        self.cluster, self.view, self.queue, self.progress, self.settings = cluster, view, queue, progress, settings
        self.clock, self.now = clock, now
        self.asked_since: datetime | None = None
        """Since when `progress` is filled."""
        self._answering: set[str] = set()
        """Namespaces of which some pod has answered."""
        self._memories: dict[Key, Memory] = {}
        self._settings = Settings(
            parallel_stages=settings.parallel_stages, grace_seconds=settings.grace_seconds, status_seconds=settings.status_seconds
        )

    async def work(self) -> None:
        """Reconciles one key after the other, for ever."""
        while True:
            key = await self.queue.get()
            await asyncio.sleep(0)  # probes are answered also where many keys are due that need no request
            begun = self.clock()
            outcome = await self._guarded(key)
            metrics.RECONCILES.labels(outcome).inc()
            metrics.RECONCILE_SECONDS.observe(self.clock() - begun)

    async def _guarded(self, key: Key) -> str:
        """Reconciles and gives the key back, whatever happens."""
        try:
            outcome = await self.reconcile(key)
        except NotLeaderError:
            self.queue.failed(key)
            return "not-leader"
        except ClusterError as error:
            if error.status in (404, 409):
                await self._refresh(key)
                self.queue.failed(key, first=CONFLICT_AGAIN_S)
                return "conflict"
            delay = self.queue.failed(key, error.retry_after)
            logger.warning("%s/%s: %s; again in %.1f s", *key, error, delay)
            return "error"
        except Exception:
            delay = self.queue.failed(key)
            logger.exception("%s/%s: reconcile failed; again in %.1f s", *key, delay)
            return "error"
        self.queue.done(key)
        return outcome

    async def reconcile(self, key: Key) -> str:
        """One look. Returns its outcome: done, gone or invalid.

        Raises:
            ClusterError: the API server did not do what it was asked for.
            NotLeaderError: this process must not write any more.
        """
        known = self.view.experiments.get(key)
        if known is None or known.deleting:  # its children go with it, by their owner references
            self._memories.pop(key, None)
            self.queue.forget(key)
            return "gone"
        memory = self._memories.get(key)
        if memory is None or memory.uid != known.uid:
            memory = self._memories[key] = Memory(known.uid)
        if known.unreadable:
            await self._tell_unreadable(key, known, memory)
            return "invalid"
        if known.experiment is None:
            if await self._write(key, known, memory, _refused(known, self.now())):
                await self._tell(known, (Event(reason=Reason.INVALID_SPEC, message=known.problem, warning=True),))
            return "invalid"
        await self._confirm_losses(key, known, memory)
        decision = decide(self._snapshot(key, known, memory), self.now())
        runs = {stage.key for stage in known.status.stages if stage.state is StageState.RUNNING}
        begins = [stage.key for stage in decision.status.stages if stage.state is StageState.RUNNING and stage.key not in runs]
        with self.view.beginning(key, known, begins):
            written = await self._write(key, known, memory, _with_pod_named(known, decision.status))
        failure: ClusterError | None = None
        try:
            await self._act(key, known, memory, decision)
        except ClusterError as error:
            failure = error
        if written:  # what is not told now is never told
            await self._tell(known, decision.events)
        if failure is not None:
            raise failure
        if decision.look_again is not None:
            self.queue.add(key, decision.look_again)
        return "done"

    # -- see

    def _snapshot(self, key: Key, known: Known, memory: Memory) -> Snapshot:
        assert known.experiment is not None
        pods = {str(pod.name): pod for body in self.view.pods_of(key) if (pod := self._observe(body)) is not None}
        memory.unserved = {name: one for name, one in memory.unserved.items() if name in pods}
        pods |= {name: _unreachable(pods[name], one) for name, one in memory.unserved.items() if pods[name].alive}
        memory.seen = (memory.seen & {str(name) for stage in known.status.stages for name in _wanted(stage)}) | pods.keys()
        for name in list(memory.refused):
            if name in pods:
                del memory.refused[name]
        refused = [
            Pod(name=one.name, phase=PodPhase.PENDING, created=one.since, waiting=one.message, refused=True)
            for one in memory.refused.values()
        ]
        return Snapshot(
            experiment=known.experiment,
            plan=known.plan,
            status=_with_seen(known.status, memory.seen),
            pods=(*pods.values(), *refused),
            # A finished experiment needs nobody's; where a thousand share a stage, asking for each would hold up the event loop.
            artifacts={} if known.phase.terminal else self._artifacts(key, known),
            makers={} if known.phase.terminal else self._makers(key, known),
            settings=self._settings,
            asked_since=self.asked_since,
            reachable=key[0] in self._answering,
        )

    def _observe(self, body: Body) -> Pod | None:
        progress = self.progress.get(body["metadata"]["uid"])
        if progress is not None:
            self._answering.add(body["metadata"]["namespace"])
        return observe(body, progress)

    def _artifacts(self, key: Key, known: Known) -> dict[str, ResultMessage]:
        """Artifacts that other experiments of the same storage have made.

        Not those of evaluations whose scores are wanted, the last and those of checkpoints: only a pod can read them again. It finds them
        in the storage and computes nothing.
        """
        scores = {stage.key for stage in known.plan if stage.snapshot is not None}
        scores |= {known.plan[-1].key} if known.plan[-1].kind is StageKind.EVALUATION else set()
        found = {}
        for stage in known.plan:
            maker = self.view.maker(key, stage.key) if stage.key not in scores else None
            artifact = maker.stages[stage.key].artifact if maker is not None else None
            if artifact is not None:
                reference = ArtifactReference(key=stage.key, path=artifact.path, digest=artifact.digest)
                found[stage.key] = ResultMessage(outcome=Outcome.COMPLETE, artifact=reference, reused=True)
        return found

    def _makers(self, key: Key, known: Known) -> dict[str, str]:
        """Who makes a stage of this experiment: whoever began, or else the oldest that is not suspended.

        Of an experiment whose status cannot be read, only pods tell that it began.
        """
        return {stage.key: maker for stage in known.plan if (maker := self._maker(key, known, stage)) is not None}

    def _maker(self, key: Key, known: Known, stage: StagePlan) -> str | None:
        mine = known.stages.get(stage.key)
        if mine is not None and mine.state is StageState.RUNNING:
            return None
        if (beginner := self.view.beginner(key, stage.key)) is not None:
            return beginner[1]
        sharers = self.view.sharers(key, stage.key)
        others = [other for other in sharers if other.active]
        for other in others:
            if (record := other.stages.get(stage.key)) is not None and record.state is StageState.RUNNING:
                return str(other.body["metadata"]["name"])
        for other in sharers:
            if other.unreadable and not other.deleting and self._works_at(other, stage):
                return str(other.body["metadata"]["name"])
        elder = min((other for other in others if _may_make(other, stage)), key=lambda other: other.seniority, default=None)
        if elder is None or elder.seniority > known.seniority:
            return None
        return str(elder.body["metadata"]["name"])

    def _works_at(self, other: Known, stage: StagePlan) -> bool:
        """Whether a pod of an experiment may still leave the artifact of a stage."""
        pods = [pod for body in self.view.pods_of(key_of(other.body)) if (pod := self._observe(body)) is not None]
        mine = [pod for pod in pods if pod.name.stage == stage.key and pod.name.role is Role.WORKER]
        return any(not pod.ended and not is_silent(pod, self.now()) for pod in mine)

    async def _confirm_losses(self, key: Key, known: Known, memory: Memory) -> None:
        """Asks the API server for pods that were seen and are no longer in the view: only it knows whether they are lost."""
        for stage in _with_seen(known.status, memory.seen).stages:
            for name in _seen(stage) if stage.state is StageState.RUNNING else ():
                pod = (key[0], manifest.object_name(key[1], name))
                if pod not in self.view.pods and (body := await self.cluster.get(PODS, *pod)) is not None:
                    self.view.put_pod(body)

    async def _refresh(self, key: Key) -> None:
        """Reads an experiment that was changed under our hands; the watch would tell it soon."""
        try:
            body = await self.cluster.get(EXPERIMENTS, *key)
        except ClusterError:
            return
        known = self.view.experiments.get(key)
        if body is not None:
            self._look_at(self.view.put_experiment(body), besides=key)
        elif known is not None:
            self._look_at(self.view.drop_experiment(known.body), besides=key)

    # -- write

    async def _write(self, key: Key, known: Known, memory: Memory, status: ExperimentStatus) -> bool:
        """Writes the status if it differs; True when it did. What only tells of progress waits until the last write is old enough."""
        if status == known.status:
            return False
        wait = self.settings.status_seconds - (self.clock() - memory.written)
        if wait > 0 and not urgent(known.status, status):
            self.queue.add(key, wait)
            return False
        body = {
            "apiVersion": API_VERSION,
            "kind": "TransferExperiment",
            # With the version that was read: whoever wrote meanwhile, this decision knew nothing of it.
            "metadata": {"name": key[1], "namespace": key[0], "uid": known.uid, "resourceVersion": known.version},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        answer = await self.cluster.apply_status(EXPERIMENTS, *key, body)
        memory.written = self.clock()
        self._look_at(self.view.put_experiment(answer), besides=key)
        self._measure(known, memory, status)
        return True

    def _look_at(self, keys: set[Key], besides: Key) -> None:
        for key in keys - {besides}:
            self.queue.add(key)

    def _measure(self, known: Known, memory: Memory, new: ExperimentStatus) -> None:
        """What metrics tell of the step from one status to the next."""
        old = known.status
        for cause in Cause:
            metrics.RESTARTS.labels(cause.value).inc(max(0, new.restarts.count(cause) - old.restarts.count(cause)))
        if new.results is not None and old.results is None:
            metrics.RESULTS_WRITTEN.inc()
        begins = old.phase is Phase.PENDING and new.phase is Phase.RUNNING
        if begins and not any(stage.artifact and stage.artifact.reused for stage in new.stages):  # an artifact that is there needs no pod
            created = datetime.fromisoformat(str(known.body["metadata"]["creationTimestamp"]))
            metrics.TIME_TO_RUNNING.observe(max(0.0, (self.now() - created).total_seconds()))
        if old.workers.desired and new.workers.desired and new.workers.desired != old.workers.desired and new.stage == old.stage:
            memory.resized = self.clock()
        if memory.resized is not None and known.experiment is not None and _at_size(new.workers, known.experiment.spec):
            metrics.RESIZE_SECONDS.observe(self.clock() - memory.resized)
            memory.resized = None

    # -- act

    async def _act(self, key: Key, known: Known, memory: Memory, decision: Decision) -> None:
        """Deletes first: a successor must not meet the pod that it replaces."""
        deletions = [action for action in decision.actions if isinstance(action, DeletePod)]
        creations = [action for action in decision.actions if isinstance(action, CreatePod)]
        await _all(*(self._delete(key, memory, action) for action in deletions))
        await _all(*(self._create(key, known, memory, action) for action in creations))
        await _all(*(self._serve(key, known, memory, body) for body in self.view.pods_of(key)))

    async def _create(self, key: Key, known: Known, memory: Memory, action: CreatePod) -> None:
        assert known.experiment is not None
        name = str(action.name)
        pod = manifest.pod(known.experiment, action, self.settings)
        body = await self._make(key, known, memory.refused, action.name, PODS, pod, known.uid)
        if body is not None:
            memory.refused.pop(name, None)
            memory.seen.add(name)
            self.view.put_pod(body)

    async def _serve(self, key: Key, known: Known, memory: Memory, pod: Body) -> None:
        """Gives a rendezvous pod its Service, which belongs to it, and another where somebody deletes that.

        Without it no worker that comes later finds the others, and those that are there train on as if all were well. Services are not
        watched: each is asked for at times.
        """
        uid, name = pod["metadata"]["uid"], manifest.parse_name(pod)
        over = "deletionTimestamp" in pod["metadata"] or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if name is None or name.role is not Role.RENDEZVOUS or over or known.experiment is None:
            return
        again = self.settings.resync_seconds
        if uid in memory.served and (left := memory.served[uid] + again - self.clock()) > 0:
            self.queue.add(key, left)
            return
        if uid not in memory.served or not await self._is_served(key, known.experiment, name, uid):
            memory.served.pop(uid, None)
            service = manifest.rendezvous_service(known.experiment, name, uid, self.settings)
            if await self._make(key, known, memory.unserved, name, SERVICES, service, uid) is None:
                return
            if memory.unserved.pop(str(name), None) is not None:
                self.queue.add(key)  # so that the status tells it
        memory.served[uid] = self.clock()
        self.queue.add(key, again)

    async def _is_served(self, key: Key, experiment: TransferExperiment, name: PodName, uid: str) -> bool:
        found = await self.cluster.get(SERVICES, key[0], manifest.service_name(experiment, name))
        return found is not None and any(owner["uid"] == uid for owner in found["metadata"].get("ownerReferences", ()))

    async def _make(
        self, key: Key, known: Known, notes: dict[str, Refused], name: PodName, resource: Resource, body: Body, owner: str
    ) -> Body | None:
        """Makes an object, or finds it made; None where it cannot be made, which is noted, told once and tried again after a while."""
        old = notes.get(str(name))
        if old is not None and old.retry > self.clock():
            self.queue.add(key, old.retry - self.clock())
            return None
        try:
            made, new = await make(self.cluster, resource, key[0], body, owner)
        except NotMadeError as error:
            await self._note(key, known, notes, name, error)
            return None
        if not new:  # whatever became of it meanwhile, no event may tell it again
            self.queue.add(key, NAMESAKE_AGAIN_S if made is None else 0)
        return made

    async def _note(self, key: Key, known: Known, notes: dict[str, Refused], name: PodName, error: NotMadeError) -> None:
        old = notes.get(str(name))
        notes[str(name)] = error.noted(name, old, second(self.now()), self.clock())
        self.queue.add(key, error.again)
        stays = error.obstacle is Obstacle.STAYS
        if old is None or (stays and old.message != error.message):
            logger.warning("%s/%s: %s: %s", *key, name, error.message)
            self.queue.add(key)  # so that the status tells it
            if stays:
                await self._tell(known, (Event(reason="NameTaken", message=error.message, warning=True),))

    async def _delete(self, key: Key, memory: Memory, action: DeletePod) -> None:
        if memory.refused.pop(str(action.name), None) is not None:
            return
        pod = self.view.pods.get((key[0], manifest.object_name(key[1], action.name)))
        if pod is None:
            return
        metadata = pod["metadata"]
        answer = await self.cluster.delete(PODS, key[0], metadata["name"], metadata["uid"], action.grace_seconds)
        if answer is None:
            self._look_at(self.view.drop_pod(pod), besides=("", ""))  # its event may have come long ago, or never come
        elif answer.get("kind") == "Pod":
            self.view.put_pod(answer)

    # -- tell

    async def _tell_unreadable(self, key: Key, known: Known, memory: Memory) -> None:
        """Somebody has to look: once to whoever has the experiment, and in a metric as long as it is so."""
        if memory.unreadable == known.unreadable:
            return
        memory.unreadable = known.unreadable
        message = (
            f"its status cannot be read, so nothing is done for it: {known.unreadable}. Mend it "
            f"(kubectl edit txp {key[1]} --namespace {key[0]} --subresource=status; a cluster admin may), "
            "or delete the experiment and apply it again: "
            "what its complete stages have made is found in the storage"
        )
        logger.error("%s/%s: %s", *key, message)
        await self._tell(known, (Event(reason="StatusUnreadable", message=message, warning=True),))

    async def _tell(self, known: Known, events: tuple[Event, ...]) -> None:
        """Events are for people: one that cannot be written is not worth a retry."""
        for event in events:
            try:
                body = manifest.event(known.body["metadata"], event, self.settings, self.now())
                await self.cluster.create(EVENTS, body["metadata"]["namespace"], body)
            except ClusterError as error:
                logger.info("an event was not written: %s", error)


def _with_pod_named(known: Known, status: ExperimentStatus) -> ExperimentStatus:
    """What a failure says of the pod: the name of the object, as people give it to kubectl."""
    failure = status.failure
    if failure is None or not failure.pod or known.status.failure is not None:
        return status
    name = manifest.object_name(known.body["metadata"]["name"], failure.pod)
    return status.model_copy(update={"failure": failure.model_copy(update={"pod": name})})


def _worker(stage: StageStatus, record: WorkerRecord) -> PodName:
    kind, key, attempt = stage.kind.value, stage.key, stage.attempt
    return PodName(stage=key, kind=kind, attempt=attempt, index=record.index, generation=record.generation)


def _at_size(workers: WorkersStatus, spec: ExperimentSpec) -> bool:
    """Whether training goes on with all the processes of the workers that are wanted, and with no others."""
    return workers.ready == workers.desired and workers.world_size == workers.desired * manifest.processes(spec)


def _rendezvous(stage: StageStatus) -> PodName:
    return PodName(stage=stage.key, kind=stage.kind.value, attempt=stage.attempt, role=Role.RENDEZVOUS)


def _wanted(stage: StageStatus) -> Iterator[PodName]:
    """Pods that the current attempt of a stage may want."""
    yield from (_worker(stage, record) for record in stage.workers)
    yield _rendezvous(stage)


def _seen(stage: StageStatus) -> Iterator[PodName]:
    """Pods that a running stage has seen, and wants."""
    yield from (_worker(stage, record) for record in stage.workers if record.seen and not record.retired)
    if stage.rendezvous_seen:
        yield _rendezvous(stage)


def _with_seen(status: ExperimentStatus, seen: set[str]) -> ExperimentStatus:
    """The status, knowing also which pods this process has seen."""

    def stage_with(stage: StageStatus) -> StageStatus:
        if stage.state is not StageState.RUNNING or not stage.workers:  # no pod is wanted
            return stage
        workers = [record.model_copy(update={"seen": record.seen or str(_worker(stage, record)) in seen}) for record in stage.workers]
        rendezvous = stage.rendezvous_seen or str(_rendezvous(stage)) in seen
        return stage.model_copy(update={"workers": workers, "rendezvous_seen": rendezvous})

    return status.model_copy(update={"stages": [stage_with(stage) for stage in status.stages]})


def _unreachable(store: Pod, why: Refused) -> Pod:
    """A rendezvous pod without its Service: nobody can reach it, so it has not started, whatever its container does."""
    return replace(store, phase=PodPhase.PENDING, created=why.since, waiting=why.message, on_its_way=False)


def urgent(old: ExperimentStatus, new: ExperimentStatus) -> bool:
    """Whether the difference is more than progress: whatever an action or a person waits for.

    Left out are readiness and progress, and that a pod was seen: it is seen again at the next look.
    """
    return _essence(old) != _essence(new)


def _essence(status: ExperimentStatus) -> dict[str, object]:
    plain = status.model_dump(exclude={"workers", "progress", "latest_metrics", "checkpoint", "usage", "conditions"})
    # That a first pod runs is told with its first progress.
    plain["phase"] = Phase.RUNNING if status.phase is Phase.PENDING else status.phase
    for stage in plain["stages"]:
        for name in ("rendezvous_seen", "last_step", "last_step_time", "productive_seconds", "lost_steps", "below_min_since"):
            del stage[name]
        for record in stage["workers"]:
            del record["seen"]
    told = (ConditionType.ACCEPTED, ConditionType.STALLED, ConditionType.SUSPENDED)
    plain["conditions"] = [(one.type, one.status, one.reason) for one in status.conditions if one.type in told]
    return plain


def _may_make(other: Known, stage: StagePlan) -> bool:
    """Whether an experiment will make a stage if nobody else does."""
    record = other.stages.get(stage.key)
    assert other.experiment is not None
    return not other.experiment.spec.suspend and (record is None or record.state is not StageState.COMPLETE)


def _refused(known: Known, now: datetime) -> ExperimentStatus:
    """The status of a spec that cannot work: nothing is begun, and an edit of it is looked at again."""
    old = next((one for one in known.status.conditions if one.type is ConditionType.ACCEPTED), None)
    condition = Condition(
        type=ConditionType.ACCEPTED, status="False", reason=Reason.INVALID_SPEC, message=known.problem[:4096],
        last_transition_time=old.last_transition_time if old is not None and old.status == "False" else second(now),
        observed_generation=known.generation,
    )  # fmt: skip
    others = [one for one in known.status.conditions if one.type is not ConditionType.ACCEPTED]
    return known.status.model_copy(update={"conditions": [condition, *others], "observed_generation": known.generation})


async def _all(*tasks: Awaitable[None]) -> None:
    """Runs all to their ends, then raises the first error: one pod that fails must not keep the others from being made."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result

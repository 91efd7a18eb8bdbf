"""One stage in one call of `decide`: what it may know, and what it has come to so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from transfer_api.errors import ExitCode
from transfer_api.spec import ExperimentSpec
from transfer_api.stage import StagePlan
from transfer_api.status import Restarts, StageStatus, WorkerRecord
from transfer_operator.decide.decision import Action, DeletePod, Event, Refusal
from transfer_operator.decide.snapshot import Pod, PodName, Role, Settings


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a stage may know besides itself."""

    spec: ExperimentSpec
    settings: Settings
    now: datetime
    spent: Restarts
    """Restarts of the other stages: budgets are the experiment's."""
    note_progress: bool = True
    """Whether progress alone is worth a status write now."""
    asked_since: datetime | None = None
    reachable: bool = True
    """Both as in the snapshot."""


@dataclass(kw_only=True)
class Step:
    """What one stage comes to in one call."""

    plan: StagePlan
    around: Surroundings
    status: StageStatus
    pods: tuple[Pod, ...]
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    refusal: Refusal | None = None
    wake: list[datetime] = field(default_factory=list)

    def change(self, **fields: object) -> None:
        """Moves the record on."""
        self.status = self.status.model_copy(update=fields)

    def delete(self, pod: Pod) -> None:
        """Asks for the removal of a pod, once, unless that is under way."""
        asked = any(action.name == pod.name for action in self.actions if isinstance(action, DeletePod))
        if not pod.terminating and not asked:
            grace = 0 if pod.ended else self.around.settings.grace_seconds
            self.actions.append(DeletePod(name=pod.name, grace_seconds=grace))

    def name(self, record: WorkerRecord) -> PodName:
        """The pod that a record asks for."""
        kind, key, attempt = self.plan.kind.value, self.plan.key, self.status.attempt
        return PodName(stage=key, kind=kind, attempt=attempt, index=record.index, generation=record.generation)

    @property
    def rendezvous(self) -> PodName:
        """The rendezvous pod of the current attempt."""
        return PodName(stage=self.plan.key, kind=self.plan.kind.value, attempt=self.status.attempt, role=Role.RENDEZVOUS)

    def pod(self, name: PodName) -> Pod | None:
        """The pod of that name, if there is one."""
        return next((pod for pod in self.pods if pod.name == name), None)

    def wanted(self) -> Iterator[tuple[WorkerRecord, Pod | None]]:
        """The records that ask for a pod, each with its pod."""
        for record in self.status.workers:
            if not record.retired:
                yield record, self.pod(self.name(record))

    @property
    def last_crashes(self) -> tuple[Pod, ...]:
        """Of each worker of the attempt the last pod that failed by itself: it holds nothing but its log, which would go with it."""
        mine = [pod for pod in self.pods if pod.name.role is Role.WORKER and pod.name.attempt == self.status.attempt]
        failed = [pod for pod in mine if pod.ended and not (pod.disrupted or pod.lost) and pod.exit_code not in (None, 0, ExitCode.SAVED)]
        return tuple({pod.name.index: pod for pod in sorted(failed, key=lambda pod: pod.name.generation)}.values())

    @property
    def desired(self) -> int:
        """Pods that the stage should have, besides the rendezvous."""
        return self.plan.pods(self.around.spec.workers.replicas)

    @property
    def min_nodes(self) -> int:
        """Workers with which training goes on, never more than are wanted; one of those that only share work does it all."""
        return min(self.around.spec.workers.min, self.desired) if self.plan.kind.elastic else 1

    @property
    def meets(self) -> bool:
        """Whether the pods of the attempt meet at a rendezvous; a worker that will always be alone needs none."""
        return self.plan.kind.elastic and self.status.max_workers > 1

    def put(self, record: WorkerRecord) -> None:
        """Puts a record in the place of the one of its index."""
        self.change(workers=[record if old.index == record.index else old for old in self.status.workers])

    def overdue(self, since: datetime, seconds: int) -> bool:
        """Whether a deadline has passed; if not, the stage is to be looked at again when it does."""
        deadline = since + timedelta(seconds=seconds)
        if self.around.now >= deadline:
            return True
        self.wake.append(deadline)
        return False

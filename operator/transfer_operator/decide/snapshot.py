"""What is seen at one moment: the experiment, its recorded status, its pods, the artifacts that exist."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from transfer_api.progress import Progress, ResultMessage
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StagePlan
from transfer_api.status import ExperimentStatus


class Role(enum.StrEnum):
    """What a pod is for."""

    WORKER = "worker"
    RENDEZVOUS = "rendezvous"


class PodPhase(enum.StrEnum):
    """As in Kubernetes."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class PodName:
    """Identity of a pod; its text is the same whoever computes it and whenever."""

    stage: str
    """Key of the stage."""
    kind: str
    """Kind of the stage, for people who read names."""
    attempt: int
    role: Role = Role.WORKER
    index: int = 0
    generation: int = 1

    @property
    def attempt_name(self) -> str:
        """Name of the attempt, which is also its rendezvous id."""
        return f"{self.kind}-{self.stage[:10]}-a{self.attempt}"

    def __str__(self) -> str:
        if self.role is Role.RENDEZVOUS:
            return f"{self.attempt_name}-rendezvous"
        return f"{self.attempt_name}-w{self.index}-g{self.generation}"


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One pod of the experiment, as a backend sees it."""

    name: PodName
    phase: PodPhase
    created: datetime
    started: datetime | None = None
    """When its container began to run; None where that is not known, or not yet."""
    terminating: bool = False
    """Deletion was asked for; it counts as gone, whatever it still does."""
    gone_by: datetime | None = None
    """When it should be gone: its deletion was asked for, and its grace is over then. None where that is not known."""
    exit_code: int | None = None
    out_of_memory: bool = False
    disrupted: bool = False
    """It has the condition DisruptionTarget because it was preempted, drained or evicted, not because its node died."""
    lost: bool = False
    """It ended without an exit code of its own: node gone, killed from outside."""
    waiting: str = ""
    """Why it does not start, in the words of the kubelet, the scheduler or the API server."""
    on_its_way: bool = False
    """What it waits for is in the course of things (volumes, image): worth telling only when it takes long."""
    refused: bool = False
    """There is no such pod yet: the API server did not take it (a quota, a policy). It is wanted since `created`."""
    rejected: bool = False
    """It ended and its container never ran: the node did not take it, or could not start it."""
    queued: bool = False
    """A queue has it, which says when it may be placed: that is no failure to start."""
    placed: datetime | None = None
    """When a queue's pod got its node; None for one that no queue had."""
    result: ResultMessage | None = None
    progress: Progress | None = None

    @property
    def ended(self) -> bool:
        """Whether its container has come to an end."""
        return self.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)

    @property
    def alive(self) -> bool:
        """Whether it runs or may still run, and is meant to."""
        return not self.ended and not self.terminating


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the operator, not the user, decides."""

    parallel_stages: int | None = None
    """Stages of one experiment that may run at once; None: all that are ready."""
    grace_seconds: int = 120
    """Time a pod gets to save before it is killed."""
    status_seconds: int = 10
    """Shortest time between two status writes that only tell of progress."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that `decide` may look at.

    Status and pods may be old, but the pods no older than the status: they must show at least what was seen when it was written.
    """

    experiment: TransferExperiment
    plan: tuple[StagePlan, ...]
    status: ExperimentStatus
    pods: tuple[Pod, ...] = ()
    artifacts: Mapping[str, ResultMessage] = field(default_factory=dict)
    """Results of finished stages that the caller knows of, by stage key; it need not know all."""
    makers: Mapping[str, str] = field(default_factory=dict)
    """Other experiments that make a stage of this one just now, by stage key: it waits for theirs."""
    settings: Settings = Settings()
    asked_since: datetime | None = None
    """Since when pods are asked for their progress: what they did before, they have had no chance to tell. None: since ever."""
    reachable: bool = True
    """Whether any pod of the namespace has ever answered: where none has, silence says nothing."""

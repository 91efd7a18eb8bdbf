"""What is answered: the new status, and what to do once it is written."""

from __future__ import annotations

from dataclasses import dataclass

from transfer_api.stage import StagePlan
from transfer_api.status import ExperimentStatus, Reason
from transfer_operator.decide.snapshot import PodName


@dataclass(frozen=True, kw_only=True)
class CreatePod:
    """Create a pod (for the rendezvous: and its Service) unless one of that name exists."""

    name: PodName
    stage: StagePlan
    min_nodes: int = 1
    max_nodes: int = 1


@dataclass(frozen=True, kw_only=True)
class DeletePod:
    """Delete a pod, giving it `grace_seconds` to save."""

    name: PodName
    grace_seconds: int


Action = CreatePod | DeletePod


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line for people, as `kubectl describe` shows it; sent after the status is written."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer of `decide`. Order matters: status, then actions, then events."""

    status: ExperimentStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    look_again: float | None = None
    """Seconds after which time alone changes the answer; None when only an event can."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why an experiment has to fail."""

    reason: Reason
    message: str
    pod: str = ""
    exit_code: int | None = None

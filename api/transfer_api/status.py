"""`TransferExperiment.status`: what the operator answers.

Numbers are integers or strings, lists are bounded, and whatever must not be forgotten when a pod is deleted (generations,
restarts by cause, usage) is kept here and nowhere else. Times are RFC 3339 in UTC, to the second.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, computed_field

from transfer_api.base import Observed
from transfer_api.stage import StageKind


class Phase(enum.StrEnum):
    """A printed summary; the conditions are the truth."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"

    @property
    def terminal(self) -> bool:
        """Complete and Failed are for ever."""
        return self in (Phase.COMPLETE, Phase.FAILED)


class StageState(enum.StrEnum):
    """Where a stage stands."""

    WAITING = "Waiting"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Cause(enum.StrEnum):
    """Why a pod was replaced, or an attempt begun again. `saved` is not counted against any budget."""

    APPLICATION = "application"
    INFRASTRUCTURE = "infrastructure"
    PREEMPTION = "preemption"
    STALL = "stall"
    SAVED = "saved"


class ConditionType(enum.StrEnum):
    """Conditions of an experiment."""

    ACCEPTED = "Accepted"
    WORKERS_READY = "WorkersReady"
    STALLED = "Stalled"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    ENGLISH_RETAINED = "EnglishRetained"


class Reason(enum.StrEnum):
    """Reasons of conditions and failures: one list for status, events and docs."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    ALL_READY = "AllReady"
    BELOW_REPLICAS = "BelowReplicas"
    BELOW_MIN = "BelowMin"
    NO_WORKERS = "NoWorkers"
    PROGRESSING = "Progressing"
    NO_STEP_WITHIN_DEADLINE = "NoStepWithinDeadline"
    NO_ANSWER = "NoAnswer"
    SUSPEND_REQUESTED = "SuspendRequested"
    RESUMED = "Resumed"
    STAGES_REMAIN = "StagesRemain"
    ALL_STAGES_COMPLETE = "AllStagesComplete"
    CANNOT_WORK = "CannotWork"
    CHECKPOINT_UNREADABLE = "CheckpointUnreadable"
    OUT_OF_MEMORY = "OutOfMemory"
    RESTART_LIMIT_EXCEEDED = "RestartLimitExceeded"
    STARTUP_DEADLINE_EXCEEDED = "StartupDeadlineExceeded"
    WITHIN_MARGIN = "WithinMargin"
    BEYOND_MARGIN = "BeyondMargin"
    INTERVAL_TOO_WIDE = "IntervalTooWide"
    RETENTION_NOT_MEASURED = "RetentionNotMeasured"


REASON_TEXT: dict[Reason, str] = {
    Reason.ACCEPTED: "The spec is valid and cut into stages.",
    Reason.INVALID_SPEC: "The spec cannot work; the message names the field.",
    Reason.ALL_READY: "Every wanted worker runs.",
    Reason.BELOW_REPLICAS: "Training goes on with fewer workers than wanted.",
    Reason.BELOW_MIN: "Fewer workers than min can run; training waits.",
    Reason.NO_WORKERS: "No stage needs workers now.",
    Reason.PROGRESSING: "No step is overdue.",
    Reason.NO_ANSWER: "Pods run, and none of the namespace has answered the operator: does a NetworkPolicy keep it from their port 9090?",
    Reason.NO_STEP_WITHIN_DEADLINE: "Pods run but no step was done within deadlines.stallSeconds; the attempt begins again.",
    Reason.SUSPEND_REQUESTED: "asked for by spec.suspend, or with Ctrl-C: progress is saved and the workers are released.",
    Reason.RESUMED: "spec.suspend is false.",
    Reason.STAGES_REMAIN: "Stages remain to be done.",
    Reason.ALL_STAGES_COMPLETE: "Every stage has left its artifact.",
    Reason.CANNOT_WORK: "The spec, data or model cannot work (exit code 10); the message says which and why.",
    Reason.CHECKPOINT_UNREADABLE: "An artifact or checkpoint is unreadable or of another experiment (exit code 11).",
    Reason.OUT_OF_MEMORY: "A pod ran out of memory twice in one stage.",
    Reason.RESTART_LIMIT_EXCEEDED: "A restart budget is spent; the message says which cause and the last error.",
    Reason.STARTUP_DEADLINE_EXCEEDED: "A pod did not start within deadlines.startupSeconds; the message says what it waited for.",
    Reason.WITHIN_MARGIN: "English lost no more than evaluation.retention.maxLoss, with a confidence of 95 %.",
    Reason.BEYOND_MARGIN: "English lost more than evaluation.retention.maxLoss, with a confidence of 95 %; the message says where.",
    Reason.INTERVAL_TOO_WIDE: "Whether English lost more than evaluation.retention.maxLoss cannot be told from so few items.",
    Reason.RETENTION_NOT_MEASURED: "Nothing that evaluation.retention asks about was scored beside the base model.",
}


class Restarts(Observed):
    """How often something was begun again, by cause. Never falls."""

    application: int = Field(default=0, ge=0)
    infrastructure: int = Field(default=0, ge=0)
    preemption: int = Field(default=0, ge=0)
    stall: int = Field(default=0, ge=0)
    saved: int = Field(default=0, ge=0)

    @computed_field(description="Sum of what is counted: all but saved.")  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """For alerts and dashboards."""
        return self.application + self.infrastructure + self.preemption + self.stall

    @computed_field(description="That with its causes, for the printer column: 3 (infrastructure 2, stall 1).")  # type: ignore[prop-decorator]
    @property
    def summary(self) -> str:
        """A column can only point at one field."""
        causes = ", ".join(f"{cause.value} {self.count(cause)}" for cause in Cause if cause is not Cause.SAVED and self.count(cause))
        return f"{self.total} ({causes})" if causes else "0"

    def count(self, cause: Cause) -> int:
        """Restarts of one cause."""
        return int(getattr(self, cause.value))

    def plus(self, cause: Cause, times: int = 1) -> Restarts:
        """One more of a cause."""
        return self.model_copy(update={cause.value: self.count(cause) + times})

    def __add__(self, other: Restarts) -> Restarts:
        return Restarts(**{cause.value: self.count(cause) + other.count(cause) for cause in Cause})


class Condition(Observed):
    """As metav1.Condition."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str = Field(default="", max_length=4096)
    last_transition_time: datetime
    observed_generation: int = 0


class WorkerRecord(Observed):
    """One worker index of the current attempt (or shard of a stage without rendezvous)."""

    index: int = Field(ge=0)
    generation: int = Field(default=1, ge=1, description="The how-manieth pod of this index; part of its name.")
    seen: bool = Field(default=False, description="A pod of this generation was seen: if it is missing now, it was lost.")
    retired: bool = Field(default=False, description="Not wanted since a scale-down; the index may come back as the next generation.")
    cause: Cause | None = Field(default=None, description="Why the previous generation was replaced.")
    message: str = Field(default="", max_length=512, description="Last words of the previous generation.")
    rejections: int = Field(default=0, ge=0, description="Generations in a row whose containers never ran; decides how long to back off.")
    retry_time: datetime | None = Field(default=None, description="When this generation is made, while backing off.")


class ArtifactStatus(Observed):
    """An artifact in the storage."""

    path: str = Field(max_length=512, description="Relative to the storage.")
    digest: str = Field(max_length=80, description="sha256:<hex> of its manifest.")
    reused: bool = Field(default=False, description="It was there already.")
    provisional: bool = Field(default=False, description="A judge was down: who needs it next has the missing scores asked for again.")


class StageStatus(Observed):
    """One stage. `workers` and `restarts` are the only record of what was replaced and why."""

    name: str = Field(max_length=63)
    kind: StageKind
    key: str = Field(max_length=64)
    state: StageState = StageState.WAITING
    attempt: int = Field(default=0, ge=0, description="The how-manieth set of pods; 0 before the first.")
    workers: list[WorkerRecord] = Field(default=[], max_length=1024)
    max_workers: int = Field(default=0, ge=0, description="Most workers that this attempt can have; with 1 it needs no rendezvous.")
    rendezvous_seen: bool = Field(
        default=False, description="The rendezvous pod of this attempt was seen: if it is missing now, it was lost."
    )
    restarts: Restarts = Restarts()
    out_of_memory: int = Field(default=0, ge=0, description="How often a pod of the stage ran out of memory.")
    fruitless: int = Field(
        default=0, ge=0, description="Restarts by application or stall since a new highest step; decides how long to back off."
    )
    crash_time: datetime | None = Field(
        default=None, description="When a crash was last counted; pods of that moment that crash right after it are its echo."
    )
    start_time: datetime | None = None
    completion_time: datetime | None = None
    retry_time: datetime | None = Field(default=None, description="When the next try begins, while backing off.")
    below_min_since: datetime | None = Field(default=None, description="Since when fewer than min workers run.")
    last_step: int = Field(default=0, ge=0, description="Highest step seen.")
    last_step_time: datetime | None = Field(default=None, description="When a new highest step was seen, or the attempt began.")
    productive_seconds: int = Field(default=0, ge=0, description="Time in which steps were done for the first time.")
    lost_steps: int = Field(default=0, ge=0, description="Steps that had to be done again.")
    snapshots: list[int] = Field(default=[], max_length=32, description="Amounts of tokens whose snapshots can be scored already.")
    passed_over: list[int] = Field(default=[], max_length=64, description="Steps of damaged checkpoints that training went past.")
    artifact: ArtifactStatus | None = None
    message: str = Field(default="", max_length=1024)


class WorkersStatus(Observed):
    """Training pods of the stage that trains now."""

    desired: int = 0
    ready: int = 0
    world_size: int = Field(default=0, description="Processes in the current round of the rendezvous.")
    selector: str = Field(default="", max_length=512, description="Label selector of the worker pods, for autoscalers.")

    @computed_field(description="ready/desired, for the printer column; empty while no stage runs.")  # type: ignore[prop-decorator]
    @property
    def summary(self) -> str:
        """A column can only point at one field."""
        return f"{self.ready}/{self.desired}" if self.ready or self.desired else ""


class ProgressStatus(Observed):
    """How far the running stage is."""

    stage: str = Field(max_length=63)
    step: int = 0
    total_steps: int = 0
    tokens: int = 0
    percentage: int = Field(default=0, ge=0, le=100)
    tokens_per_second: str = "0"
    remaining_seconds: int | None = None

    @computed_field(description="Time that is left, for the printer column: 40s, 12m, 3h05m, 2d4h.")  # type: ignore[prop-decorator]
    @property
    def eta(self) -> str:
        """Empty where it is not known."""
        if self.remaining_seconds is None:
            return ""
        minutes, seconds = divmod(self.remaining_seconds, 60)
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        return f"{days}d{hours}h" if days else f"{hours}h{minutes:02}m" if hours else f"{minutes}m" if minutes else f"{seconds}s"

    last_updated: datetime | None = None


class Metric(Observed):
    """A latest value, such as loss or bits_per_byte/udhr-id."""

    name: str = Field(max_length=128)
    value: str = Field(max_length=32)
    step: int = 0


class CheckpointStatus(Observed):
    """The last complete checkpoint."""

    stage: str = Field(max_length=63)
    step: int
    time: datetime | None = None


class ScoreStatus(Observed):
    """One line of the table; the numbers as strings."""

    suite: str = Field(max_length=63)
    task: str = Field(max_length=128)
    language: str = Field(max_length=35)
    metric: str = Field(max_length=63)
    value: str = Field(max_length=32)
    baseline: str | None = Field(default=None, max_length=32)
    difference: str | None = Field(default=None, max_length=32)
    interval: list[str] = Field(default=[], max_length=2, description="Low and high end of the 95 % interval.")
    higher_is_better: bool = Field(default=True, description="Whether a model with a larger value is the better one.")
    items: int = 0


class ResultsStatus(Observed):
    """The scored table, as far as it fits; all of it is in the artifact."""

    score: str = Field(default="", max_length=80, description="The first score, for the printer column.")
    delta: str = Field(default="", max_length=80, description="Its difference to the baseline.")
    scores: list[ScoreStatus] = Field(default=[], max_length=64)
    left_out: int = Field(default=0, description="Scores that did not fit here.")
    artifact: ArtifactStatus | None = None


class UsageStatus(Observed):
    """What the training of the experiment cost. Seconds are sums over what was seen, exact to the time between two status writes."""

    running_seconds: int = Field(default=0, ge=0, description="Time in which at least one training pod ran.")
    productive_seconds: int = Field(default=0, ge=0, description="Training time in which steps were done for the first time.")
    lost_seconds: int = Field(default=0, ge=0, description="The rest of runningSeconds: starts, saves, regroupings, steps done again.")
    goodput_percent: int | None = Field(default=None, ge=0, le=100, description="Share of runningSeconds that was productive.")
    gpu_seconds: int = Field(default=0, ge=0, description="GPUs of the training pods, times the time they ran.")
    lost_steps: int = Field(default=0, ge=0, description="Training steps that had to be done again.")
    measured: datetime | None = Field(default=None, description="Until when runningSeconds counts; absent while no training pod runs.")


class Failure(Observed):
    """Why the experiment failed."""

    reason: Reason
    stage: str = Field(default="", max_length=63)
    pod: str = Field(default="", max_length=253)
    exit_code: int | None = None
    message: str = Field(default="", max_length=4096)


class ExperimentStatus(Observed):
    """`.status` of a TransferExperiment; `status.yaml` of `transfer run` is exactly this."""

    observed_generation: int = 0
    phase: Phase = Phase.PENDING
    stage: str = Field(default="", max_length=63, description="The stage that runs now.")
    start_time: datetime | None = None
    completion_time: datetime | None = None
    conditions: list[Condition] = Field(default=[], max_length=16)
    stages: list[StageStatus] = Field(default=[], max_length=48)
    workers: WorkersStatus = WorkersStatus()
    progress: ProgressStatus | None = None
    latest_metrics: list[Metric] = Field(default=[], max_length=64)
    checkpoint: CheckpointStatus | None = None
    restarts: Restarts = Restarts()
    results: ResultsStatus | None = None
    usage: UsageStatus = UsageStatus()
    failure: Failure | None = None


def second(moment: datetime) -> datetime:
    """A time as the API keeps it: UTC, whole seconds."""
    return moment.astimezone(UTC).replace(microsecond=0)

"""Builders of worlds for `decide`: a case says only what differs from an ordinary experiment in its ordinary state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from transfer_api.progress import ArtifactReference, Outcome, Progress, ResultMessage, Score
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StagePlan, plan_stages
from transfer_api.status import Cause, Condition, ConditionType, ExperimentStatus, StageStatus, WorkerRecord
from transfer_operator.decide import CreatePod, Decision, DeletePod, Pod, PodPhase, Role, Settings, Snapshot, decide
from transfer_operator.decide.snapshot import PodName

START = datetime(2026, 1, 1, tzinfo=UTC)

TRAINING = {
    "pretraining": {"steps": 100, "sequenceLength": 64, "globalBatchTokens": 512, "mixture": [{"path": "id.jsonl"}]},
}
EVALUATION = {"evaluation": {"suites": ["perplexity"], "texts": [{"name": "id", "path": "held-out.txt"}]}}


def experiment(**spec: Any) -> TransferExperiment:
    """A valid experiment: pretraining with evaluation on two workers, unless told otherwise; None leaves a part out."""
    whole = {
        "model": {"path": "model"}, "language": "id", "storage": {"claim": "experiments"},
        **TRAINING, **EVALUATION, "workers": {"min": 1, "replicas": 2, "max": 4}, **spec,
    }  # fmt: skip
    document = {
        "apiVersion": "transfer-operator.dev/v1alpha1", "kind": "TransferExperiment",
        "metadata": {"name": "tiny", "generation": 1}, "spec": {key: value for key, value in whole.items() if value is not None},
    }  # fmt: skip
    return TransferExperiment.model_validate(document)


def result(plan: StagePlan, scores: list[Score] | None = None, **fields: Any) -> ResultMessage:
    """What a pod says that completed its stage."""
    artifact = ArtifactReference(key=plan.key, path=f"artifacts/{plan.kind}/{plan.key}", digest="sha256:0")
    return ResultMessage(outcome=Outcome.COMPLETE, artifact=artifact, scores=scores or [], **fields)


@dataclass
class World:
    """An experiment, its written status, its pods and a clock. Methods return the world, so that they chain."""

    experiment: TransferExperiment = field(default_factory=experiment)
    settings: Settings = field(default_factory=Settings)
    now: datetime = START
    status: ExperimentStatus = field(default_factory=ExperimentStatus)
    pods: dict[str, Pod] = field(default_factory=dict)
    artifacts: dict[str, ResultMessage] = field(default_factory=dict)
    makers: dict[str, str] = field(default_factory=dict)
    asked_since: datetime | None = None
    reachable: bool = True
    decisions: list[Decision] = field(default_factory=list, repr=False)
    _plan: tuple[StagePlan, ...] = field(default=(), repr=False)

    @property
    def plan(self) -> tuple[StagePlan, ...]:
        """The stages; what may be edited while an experiment runs does not change them."""
        self._plan = self._plan or plan_stages(self.experiment.spec)
        return self._plan

    @property
    def last(self) -> Decision:
        return self.decisions[-1]

    def snapshot(self) -> Snapshot:
        return Snapshot(
            experiment=self.experiment, plan=self.plan, status=self.status, pods=tuple(self.pods.values()),
            artifacts=self.artifacts, makers=self.makers, settings=self.settings, asked_since=self.asked_since, reachable=self.reachable,
        )  # fmt: skip

    # What time, the user and the cluster do.

    def after(self, seconds: float) -> World:
        self.now += timedelta(seconds=seconds)
        return self

    def edit(self, **spec: Any) -> World:
        """The user changes the spec; keys are its snake_case fields, `workers` a dict of changes."""
        old = self.experiment.spec
        workers = old.workers.model_copy(update=spec.pop("workers", {}))
        generation = self.experiment.metadata.generation + 1
        self.experiment = self.experiment.model_copy(
            update={
                "spec": old.model_copy(update={**spec, "workers": workers}),
                "metadata": self.experiment.metadata.model_copy(update={"generation": generation}),
            }
        )
        return self

    def change(self, name: str, **fields: Any) -> World:
        """The pod becomes something else; `name` may be the end of its name, such as w0-g1."""
        full = self.full_name(name)
        self.pods[full] = replace(self.pods[full], **fields)
        return self

    def runs(self, *names: str) -> World:
        """These pods run; without names all that wait do."""
        waiting = [name for name, pod in self.pods.items() if pod.phase is PodPhase.PENDING]
        for name in names or waiting:
            self.change(name, phase=PodPhase.RUNNING, started=self.now)
        return self

    def steps(self, name: str, step: int, **fields: Any) -> World:
        """A pod tells of its progress, done just now."""
        fields = {"total_steps": 100, "world_size": 2, "last_step_time": self.now.timestamp(), **fields}
        return self.change(name, progress=Progress(step=step, **fields))

    def ends(self, name: str, code: int | None = 0, message: str = "", **fields: Any) -> World:
        """A pod comes to its end."""
        pod = self.pods[self.full_name(name)]
        said = None
        if code == 0:
            said = result(next(plan for plan in self.plan if plan.key == pod.name.stage))
        elif message:
            said = ResultMessage(outcome=Outcome.FAILED, message=message)
        phase = PodPhase.SUCCEEDED if code == 0 else PodPhase.FAILED
        return self.change(name, **{"phase": phase, "exit_code": code, "lost": code is None, "result": said, **fields})

    def vanishes(self, *names: str) -> World:
        for name in names:
            del self.pods[self.full_name(name)]
        return self

    def has_artifact(self, stage: str, **fields: Any) -> World:
        plan = self.planned(stage)
        self.artifacts[plan.key] = result(plan, **fields)
        return self

    # What the caller of decide does.

    def decides(self) -> World:
        """One look: the status is written and the actions are carried out; deleted pods terminate."""
        decision = decide(self.snapshot(), self.now)
        self.decisions.append(decision)
        self.status = decision.status
        for action in decision.actions:
            self.carry_out(action)
        return self

    def carry_out(self, action: CreatePod | DeletePod) -> World:
        name = str(action.name)
        if isinstance(action, CreatePod):
            self.pods.setdefault(name, Pod(name=action.name, phase=PodPhase.PENDING, created=self.now))
        elif name in self.pods:
            self.change(name, terminating=True)
        return self

    def settles(self, rounds: int = 20) -> World:
        """Decides until nothing more changes; pods that wait start, those that were told to go are gone."""
        for _ in range(rounds):
            before = (self.status, dict(self.pods))
            self.pods = {name: pod for name, pod in self.pods.items() if not pod.terminating}
            self.decides().runs()
            if (self.status, self.pods) == before:
                return self
        raise AssertionError("does not come to rest")

    def finishes(self, *stages: str) -> World:
        """These stages run to their end, one after the other."""
        for stage in stages:
            self.settles().finishes_now(stage).settles()
        return self

    def finishes_now(self, stage: str) -> World:
        """Every pod that makes this stage ends with its artifact."""
        for pod in self.stage_pods(stage):
            if pod.name.role is Role.WORKER:
                self.ends(str(pod.name))
        return self

    # What a case looks at.

    def planned(self, stage: str) -> StagePlan:
        return next(plan for plan in self.plan if plan.name == stage)

    def stage(self, name: str = "pretraining") -> StageStatus:
        return next(record for record in self.status.stages if record.name == name)

    def worker(self, index: int, stage: str = "pretraining") -> WorkerRecord:
        return next(record for record in self.stage(stage).workers if record.index == index)

    def stage_pods(self, stage: str) -> list[Pod]:
        key = self.planned(stage).key
        return [pod for pod in self.pods.values() if pod.name.stage == key]

    def counts(self) -> dict[str, int]:
        """Restarts by cause, without the zeros."""
        return {cause.value: count for cause in Cause if (count := self.status.restarts.count(cause))}

    def full_name(self, name: str) -> str:
        named = [full for full in self.pods if full == name or full.endswith(f"-{name}")]
        # Pods of a complete stage stay for their logs or are about to end; who says `w0-g1` does not mean them.
        order = {plan.key: number for number, plan in enumerate(self.plan)}
        running = [full for full in named if not self.pods[full].ended] or named
        furthest = max((order.get(self.pods[full].name.stage, -1) for full in running), default=-1)
        found = [full for full in running if order.get(self.pods[full].name.stage, -1) == furthest]
        assert len(found) == 1, f"{name} names {found} of {sorted(self.pods)}"
        return found[0]

    def condition(self, kind: ConditionType) -> Condition:
        return next(condition for condition in self.status.conditions if condition.type is kind)

    def created(self) -> list[str]:
        """Short names of the pods that the last decision asked for."""
        return sorted(short(action.name) for action in self.last.actions if isinstance(action, CreatePod))

    def deleted(self) -> list[str]:
        """Short names of the pods that the last decision deleted."""
        return sorted(short(action.name) for action in self.last.actions if isinstance(action, DeletePod))

    def events(self) -> list[str]:
        return [event.reason for event in self.last.events]


def short(name: PodName) -> str:
    """a1-w0-g1: a pod's name without its stage."""
    return str(name).removeprefix(f"{name.kind}-{name.stage[:10]}-")


def world(change: Callable[[World], World] | None = None, **spec: Any) -> World:
    """A new experiment that nothing has looked at."""
    made = World(experiment=experiment(**spec))
    return change(made) if change else made


def training(**spec: Any) -> World:
    """An experiment of pretraining alone, at the point where all its workers run and have done ten steps."""
    made = world(**{"evaluation": None, **spec}).finishes("pretraining-dataset").settles()
    for pod in made.stage_pods("pretraining"):
        if pod.name.role is Role.WORKER:
            made.steps(str(pod.name), 10)
    return made.after(30).decides()

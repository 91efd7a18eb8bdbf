"""What people read: phase, conditions, progress, scores. Everything here follows from the stages' records and the pods."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from transfer_api.progress import LATEST_UNIX_TIME, Progress, ResultMessage, Score
from transfer_api.retention import judge_retention
from transfer_api.spec import Retention
from transfer_api.stage import StageKind
from transfer_api.status import (
    REASON_TEXT,
    CheckpointStatus,
    Condition,
    ConditionType,
    ExperimentStatus,
    Failure,
    Metric,
    Phase,
    ProgressStatus,
    Reason,
    Restarts,
    ResultsStatus,
    ScoreStatus,
    StageState,
    StageStatus,
    WorkersStatus,
    second,
)
from transfer_operator.decide.deadlines import PATIENCE
from transfer_operator.decide.decision import Event
from transfer_operator.decide.snapshot import Pod, PodPhase, Role, Snapshot
from transfer_operator.decide.stage import latest_progress
from transfer_operator.decide.usage import measure

SCORES_IN_STATUS = 64
WAITS = " waits: "
"""Between a pod and what it waits for."""
METRICS_IN_STATUS = 64


def summarize(snapshot: Snapshot, stages: list[StageStatus], phase: Phase, failure: Failure | None, now: datetime) -> ExperimentStatus:
    """The status as a whole. Times move only when what they tell of changes, so that looking is not writing."""
    old = snapshot.status
    current = _current(stages)
    pods = tuple(pod for pod in snapshot.pods if current is not None and pod.name.stage == current.key)
    workers = _workers(snapshot, current, pods)
    progress = _progress(snapshot, stages, current, pods, now)
    told = latest_progress(pods) if progress is not old.progress else None
    generation = snapshot.experiment.metadata.generation
    begun = any(stage.attempt or stage.artifact for stage in stages)
    return ExperimentStatus(
        observed_generation=generation,
        phase=phase,
        stage=current.name if current else "",
        start_time=old.start_time or (now if begun else None),
        completion_time=old.completion_time or (now if phase.terminal else None),
        conditions=_conditions(snapshot, stages, workers, phase, failure, now),
        stages=stages,
        workers=workers,
        progress=progress,
        latest_metrics=_metrics(told) if told is not None else old.latest_metrics,
        checkpoint=_checkpoint(told, current) or old.checkpoint,
        restarts=sum((stage.restarts for stage in stages), Restarts()),
        results=_results(snapshot, stages) or old.results,
        usage=measure(snapshot, stages, workers.ready, current.kind if current else None, progress is not old.progress, now),
        failure=failure or old.failure,
    )


def _current(stages: list[StageStatus]) -> StageStatus | None:
    """The stage that people ask about: of those that run the one that trains, or else the first."""
    running = [stage for stage in stages if stage.state is StageState.RUNNING]
    return next((stage for stage in running if stage.kind.elastic), running[0] if running else None)


def _workers(snapshot: Snapshot, current: StageStatus | None, pods: tuple[Pod, ...]) -> WorkersStatus:
    """Workers of the stage that runs; `ready` counts pods that run and are not about to go."""
    selector = f"transfer-operator.dev/experiment={snapshot.experiment.metadata.name},transfer-operator.dev/role=worker"
    if current is None:
        return WorkersStatus(selector=selector)
    mine = [p for p in pods if p.name.role is Role.WORKER and p.name.attempt == current.attempt]
    told = latest_progress(tuple(p for p in mine if p.alive))
    return WorkersStatus(
        desired=sum(1 for record in current.workers if not record.retired),
        ready=sum(1 for pod in mine if pod.alive and pod.phase is PodPhase.RUNNING),
        world_size=told.world_size if told else 0,
        selector=selector,
    )


def _progress(
    snapshot: Snapshot, stages: list[StageStatus], current: StageStatus | None, pods: tuple[Pod, ...], now: datetime
) -> ProgressStatus | None:
    old = snapshot.status.progress
    told = latest_progress(pods)
    if old is not None and any(stage.name == old.stage and stage.state is StageState.COMPLETE for stage in stages):
        old = old.model_copy(update={"step": old.total_steps, "percentage": 100, "remaining_seconds": None})
    if current is None:
        # The same object where nothing is new: usage is measured where progress is.
        return old if old is None or old.remaining_seconds is None else old.model_copy(update={"remaining_seconds": None})
    same = old is not None and old.stage == current.name
    if told is None or (same and not (told.step or told.total_steps)):  # a pod that loads knows no step yet
        return old if same else ProgressStatus(stage=current.name)
    due = old is None or old.last_updated is None or (now - old.last_updated).total_seconds() >= snapshot.settings.status_seconds
    if not due and same:
        return old
    remaining = told.remaining_seconds
    new = ProgressStatus(
        stage=current.name,
        step=told.step,
        total_steps=told.total_steps,
        tokens=told.tokens,
        percentage=min(100, 100 * told.step // told.total_steps) if told.total_steps else 0,
        tokens_per_second=number(told.tokens_per_second),
        remaining_seconds=round(remaining) if remaining is not None and 0 <= remaining <= LATEST_UNIX_TIME else None,
        last_updated=now,
    )
    # Nothing new to tell: no write.
    return old if old is not None and new.model_copy(update={"last_updated": old.last_updated}) == old else new


def _metrics(told: Progress) -> list[Metric]:
    named = {"loss": told.loss, "learning_rate": told.learning_rate, "gradient_norm": told.gradient_norm, **told.metrics}
    found = [Metric(name=name, value=number(value), step=told.step) for name, value in named.items() if value is not None]
    return found[:METRICS_IN_STATUS]


def _checkpoint(told: Progress | None, current: StageStatus | None) -> CheckpointStatus | None:
    if told is None or current is None or told.checkpoint_step is None:
        return None
    time = datetime.fromtimestamp(told.checkpoint_time).astimezone() if told.checkpoint_time else None
    return CheckpointStatus(stage=current.name, step=told.checkpoint_step, time=second(time) if time else None)


def _evaluation(stages: list[StageStatus]) -> StageStatus | None:
    """The last evaluation, once it is complete."""
    last = next((stage for stage in reversed(stages) if stage.kind is StageKind.EVALUATION), None)
    return last if last is not None and last.state is StageState.COMPLETE else None


def scored(snapshot: Snapshot, stage: StageStatus) -> ResultMessage | None:
    """What a pod or the artifact says of the scores of a stage."""
    told = [pod.result for pod in snapshot.pods if pod.name.stage == stage.key and pod.result is not None]
    told += [snapshot.artifacts[stage.key]] if stage.key in snapshot.artifacts else []
    return min((result for result in told if result.scores), key=lambda result: result.scores_left_out, default=None)


def _results(snapshot: Snapshot, stages: list[StageStatus]) -> ResultsStatus | None:
    """The table of the last evaluation, once it is complete."""
    last = _evaluation(stages)
    result = scored(snapshot, last) if last is not None else None
    if last is None or result is None:
        return None
    scores = result.scores
    first = scores[0]
    return ResultsStatus(
        score=f"{first.task} {first.metric} {number(first.value)}"[:80],
        delta=signed(first.difference) if first.difference is not None else "",
        scores=[_score(score) for score in scores[:SCORES_IN_STATUS]],
        left_out=result.scores_left_out + max(0, len(scores) - SCORES_IN_STATUS),
        artifact=last.artifact,
    )


def _score(score: Score) -> ScoreStatus:
    return ScoreStatus(
        suite=score.suite[:63],
        task=score.task[:128],
        language=score.language[:35],
        metric=score.metric[:63],
        value=number(score.value),
        baseline=number(score.baseline) if score.baseline is not None else None,
        difference=signed(score.difference) if score.difference is not None else None,
        interval=[signed(end) if score.difference is not None else number(end) for end in score.interval or ()],
        higher_is_better=score.higher_is_better,
        items=score.items,
    )


def number(value: float) -> str:
    """A measured number as the API keeps it: five significant digits."""
    return f"{value:.5g}"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{value:+.5g}"


def _conditions(
    snapshot: Snapshot, stages: list[StageStatus], workers: WorkersStatus, phase: Phase, failure: Failure | None, now: datetime
) -> list[Condition]:
    found = {
        ConditionType.ACCEPTED: (True, Reason.ACCEPTED, ""),
        ConditionType.WORKERS_READY: _workers_ready(snapshot, stages, workers, now),
        ConditionType.STALLED: _stalled(snapshot, stages, now),
        ConditionType.SUSPENDED: _suspended(snapshot, phase),
        ConditionType.COMPLETE: (phase is Phase.COMPLETE, _complete_reason(phase), ""),
        ConditionType.FAILED: (True, failure.reason, failure.message) if failure else (False, _complete_reason(phase), ""),
    }
    return [_condition(snapshot, kind, *value, now) for kind, value in found.items()] + _english_retained(snapshot, stages, failure, now)


def gate_of(snapshot: Snapshot) -> Retention | None:
    """The gate on English, where the experiment has one."""
    evaluation = snapshot.experiment.spec.evaluation
    return evaluation.retention if evaluation is not None else None


def _english_retained(snapshot: Snapshot, stages: list[StageStatus], failure: Failure | None, now: datetime) -> list[Condition]:
    """The gate of `evaluation.retention`, from the scores; what was said once stays, since the pods that told go."""
    if failure is not None and failure.reason is Reason.BEYOND_MARGIN:
        return [_condition(snapshot, ConditionType.ENGLISH_RETAINED, False, failure.reason, failure.message, now)]
    gate, last = gate_of(snapshot), _evaluation(stages)
    if gate is None or last is None:
        return []
    result = scored(snapshot, last)
    if result is None:
        return [condition for condition in snapshot.status.conditions if condition.type is ConditionType.ENGLISH_RETAINED]
    judged = judge_retention(gate, result.scores)
    return [_condition(snapshot, ConditionType.ENGLISH_RETAINED, judged.kept, judged.reason, judged.message, now)]


def _condition(snapshot: Snapshot, kind: ConditionType, holds: bool | None, reason: Reason, message: str, now: datetime) -> Condition:
    old = next((condition for condition in snapshot.status.conditions if condition.type is kind), None)
    status: Literal["True", "False", "Unknown"] = "Unknown" if holds is None else "True" if holds else "False"
    unchanged = old is not None and old.status == status
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=(message or REASON_TEXT[reason])[:4096],
        last_transition_time=old.last_transition_time if unchanged and old is not None else now,
        observed_generation=snapshot.experiment.metadata.generation,
    )


def _workers_ready(snapshot: Snapshot, stages: list[StageStatus], workers: WorkersStatus, now: datetime) -> tuple[bool, Reason, str]:
    current = _current(stages)
    waiting = next((stage for stage in stages if stage.state is StageState.WAITING and stage.retry_time), None)
    if current is None and waiting is not None:
        return False, Reason.BELOW_MIN, waiting.message
    if current is None:
        waits = next((stage.message for stage in stages if stage.state is StageState.WAITING and stage.message), "")
        return (
            False,
            Reason.NO_WORKERS,
            f"{REASON_TEXT[Reason.NO_WORKERS]} The next stage {waits}." if waits.startswith("waits for") else "",
        )
    least = snapshot.experiment.spec.workers.min if current.kind.elastic else 1
    if workers.ready < least:
        return False, Reason.BELOW_MIN, _why(Reason.BELOW_MIN, snapshot, current, now)
    if workers.ready < workers.desired:
        return False, Reason.BELOW_REPLICAS, _why(Reason.BELOW_REPLICAS, snapshot, current, now)
    if why := _why(Reason.BELOW_MIN, snapshot, current, now):  # the rendezvous: without it, workers that run do not train
        return False, Reason.BELOW_MIN, why
    return True, Reason.ALL_READY, ""


def _why(reason: Reason, snapshot: Snapshot, current: StageStatus, now: datetime) -> str:
    """What the reason says, and what the first of the wanted pods waits for, the rendezvous before others; empty where none waits."""
    wanted = {(record.index, record.generation) for record in current.workers if not record.retired}
    pods = [pod for pod in snapshot.pods if pod.name.stage == current.key and pod.name.attempt == current.attempt]
    waiting = [
        pod
        for pod in sorted(pods, key=lambda pod: (pod.name.role is Role.WORKER, pod.name.index))
        if pod.alive
        and pod.phase is PodPhase.PENDING
        and pod.waiting
        and (pod.name.role is Role.RENDEZVOUS or (pod.name.index, pod.name.generation) in wanted)
        and not (pod.on_its_way and now - pod.created < PATIENCE)
    ]
    return f"{REASON_TEXT[reason]} {waiting[0].name}{WAITS}{waiting[0].waiting}" if waiting else ""


def _stalled(snapshot: Snapshot, stages: list[StageStatus], now: datetime) -> tuple[bool | None, Reason, str]:
    """True from the restart on the stall budget until a new step is seen; unknown where pods run and nobody can ask them."""
    before = {stage.key: stage.restarts.stall for stage in snapshot.status.stages}
    was = any(one.type is ConditionType.STALLED and one.status == "True" for one in snapshot.status.conditions)
    for stage in stages:
        if stage.state is StageState.RUNNING and (stage.restarts.stall > before.get(stage.key, 0) or (was and stage.fruitless)):
            return True, Reason.NO_STEP_WITHIN_DEADLINE, ""
    running = {stage.key for stage in stages if stage.state is StageState.RUNNING}
    silent = [pod for pod in snapshot.pods if pod.name.stage in running and pod.name.role is Role.WORKER and pod.phase is PodPhase.RUNNING]
    if not snapshot.reachable and any(now - (pod.started or pod.created) >= PATIENCE for pod in silent):
        return None, Reason.NO_ANSWER, ""
    return False, Reason.PROGRESSING, ""


def changes(old: ExperimentStatus, new: ExperimentStatus) -> list[Event]:
    """What is told once when it begins: that all stands still on request, goes on, or that a pod waits for something."""
    told = []
    if Phase.SUSPENDED in (old.phase, new.phase) and old.phase is not new.phase:
        suspended = new.phase is Phase.SUSPENDED
        message = "progress is saved and the workers are released" if suspended else "goes on from what is saved"
        told.append(Event(reason="Suspended" if suspended else "Resumed", message=message))
    before, now = (next((one.message for one in status.conditions if one.type is ConditionType.WORKERS_READY), "") for status in (old, new))
    if WAITS in now and WAITS not in before:
        told.append(Event(reason="PodWaits", message=now, warning=True))
    return told


def _suspended(snapshot: Snapshot, phase: Phase) -> tuple[bool, Reason, str]:
    if phase is Phase.SUSPENDED:
        return True, Reason.SUSPEND_REQUESTED, ""
    if snapshot.experiment.spec.suspend and not phase.terminal:
        return False, Reason.SUSPEND_REQUESTED, f"{REASON_TEXT[Reason.SUSPEND_REQUESTED]} Its pods save and end."
    return False, Reason.RESUMED, ""


def _complete_reason(phase: Phase) -> Reason:
    return Reason.ALL_STAGES_COMPLETE if phase is Phase.COMPLETE else Reason.STAGES_REMAIN

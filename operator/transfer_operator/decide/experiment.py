"""All stages of an experiment together: which may begin, when it is complete, when it has failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from transfer_api.progress import ResultMessage
from transfer_api.stage import StagePlan
from transfer_api.status import ArtifactStatus, Failure, Phase, Restarts, StageState, StageStatus, second
from transfer_operator.decide import stage as stages
from transfer_operator.decide.decision import Action, Decision, DeletePod, Event, Refusal
from transfer_operator.decide.gate import awaited_scores, judge_checkpoint, may_stop
from transfer_operator.decide.snapshot import Pod, PodPhase, Snapshot
from transfer_operator.decide.step import Step, Surroundings
from transfer_operator.decide.summary import changes, summarize
from transfer_operator.decide.verdict import Done, verdict


def decide(snapshot: Snapshot, now: datetime) -> Decision:
    """Answers one look at an experiment. Pure: same snapshot, same time, same answer.

    Args:
        snapshot: what is seen. Its status is what was last written, not what an earlier call proposed.
        now: the time, with a time zone.
    """
    now = second(now)
    if snapshot.status.phase.terminal:
        return _clean_up(snapshot, now)
    steps: list[Step] = []
    refusal: Refusal | None = None
    for plan in snapshot.plan:
        step = _advance(snapshot, plan, steps, now)
        steps.append(step)
        if step.refusal is not None:
            refusal = step.refusal
            step.change(state=StageState.FAILED, completion_time=now, message=refusal.message[:1024])
            break
        if (refusal := judge_checkpoint(snapshot, step, steps)) is not None:
            break
    if refusal is not None:
        return _fail(snapshot, steps, refusal, now)
    for place, step in enumerate(steps):
        if snapshot.experiment.spec.suspend or step.status.state in (StageState.RUNNING, StageState.COMPLETE):
            continue
        hold = _hold(snapshot, step, steps[:place], [other.status for other in steps if other is not step])
        if hold is None:
            step.change(message="")
            stages.begin(step)
            continue
        if hold.message is not None:
            step.change(message=hold.message)
        if hold.until is not None:
            step.wake.append(hold.until)
    return _answer(snapshot, steps, now)


def _advance(snapshot: Snapshot, plan: StagePlan, before: list[Step], now: datetime) -> Step:
    """One stage that runs, or is complete, knowing what the stages before it have come to in this call."""
    record = _record(snapshot, plan)
    others = [s.status for s in before] + [s for s in snapshot.status.stages if s.key not in {plan.key, *(b.plan.key for b in before)}]
    around = Surroundings(
        spec=snapshot.experiment.spec,
        settings=snapshot.settings,
        now=now,
        spent=sum((other.restarts for other in others), Restarts()),
        note_progress=_progress_due(snapshot, now),
        asked_since=snapshot.asked_since,
        reachable=snapshot.reachable,
    )
    step = Step(plan=plan, around=around, status=record, pods=_pods(snapshot, plan))
    _adopt(step, snapshot.artifacts.get(plan.key))
    if step.status.state is StageState.RUNNING:
        stages.note_progress(step)
        scores = awaited_scores(snapshot, step, others)
        if scores is not None:
            step.change(message=_aside(scores))
        if scores is not None or snapshot.experiment.spec.suspend:
            stages.suspend(step)
        else:
            stages.advance(step)
    if step.status.state is StageState.COMPLETE:
        stages.let_end(step)
    elif step.status.state is not StageState.RUNNING:
        # Also a pod that shows up late: created before, and not seen when the stage stopped.
        for pod in step.pods:
            step.delete(pod)
    return step


def _record(snapshot: Snapshot, plan: StagePlan) -> StageStatus:
    found = next((record for record in snapshot.status.stages if record.key == plan.key), None)
    return found or StageStatus(name=plan.name, kind=plan.kind, key=plan.key)


def _pods(snapshot: Snapshot, plan: StagePlan) -> tuple[Pod, ...]:
    return tuple(pod for pod in snapshot.pods if pod.name.stage == plan.key)


def _adopt(step: Step, finished: ResultMessage | None) -> None:
    """Takes an artifact that is there: from whichever pod of the stage named it, or else from whoever left it before."""
    if step.status.state is StageState.COMPLETE:
        return
    if (done := next((pod for pod in step.pods if pod.ended and isinstance(verdict(pod), Done)), None)) is not None:
        stages.complete(step, done)
        return
    if finished is None or finished.artifact is None:
        return
    # A pod of this stage may have committed just now; its own message knows more, and is a moment away.
    if step.status.state is StageState.RUNNING and any(pod.alive for pod in step.pods):
        return
    artifact = finished.artifact
    adopted = ArtifactStatus(path=artifact.path, digest=artifact.digest, reused=True)
    step.change(state=StageState.COMPLETE, artifact=adopted, completion_time=step.around.now, retry_time=None, message="")
    step.events.append(Event(reason="StageReused", message=f"{step.plan.name}: {artifact.path}"))


_SAME_STAGE = ", which makes the same stage"


@dataclass(frozen=True)
class Hold:
    """Why a stage does not begin now."""

    message: str | None = None
    """What people are told; None where what was said before still holds."""
    until: datetime | None = None


def _hold(snapshot: Snapshot, step: Step, before: list[Step], others: list[StageStatus]) -> Hold | None:
    """What a stage that does not run waits for; None where it may begin: its inputs are complete and a slot is free.

    Args:
        before: the stages before it in the plan.
        others: the records of all stages but this one.
    """
    retry = step.status.retry_time
    if retry is not None and retry > step.around.now:
        return Hold(until=retry)
    if not _inputs_are_there(step.plan, others):
        return Hold()
    if (maker := snapshot.makers.get(step.plan.key)) is not None:
        return Hold(f"waits for {maker}{_SAME_STAGE}")
    unscored = any(other.plan.snapshot is not None and other.status.state is not StageState.COMPLETE for other in before)
    if unscored and step.plan.snapshot is None and may_stop(snapshot):
        return Hold("waits for the scores of the checkpoints, by which evaluation.retention may stop the experiment")
    if (scores := awaited_scores(snapshot, step, others)) is not None:
        return Hold(_aside(scores))
    slots = snapshot.settings.parallel_stages
    running = sum(1 for other in others if other.state is StageState.RUNNING)
    if slots is not None and running >= slots:
        return Hold("" if step.status.message.endswith(_SAME_STAGE) else None)  # its maker is gone
    return None


def _aside(scores: StagePlan) -> str:
    return f"waits for {scores.name}, by which evaluation.retention may stop it"


def _inputs_are_there(plan: StagePlan, others: list[StageStatus]) -> bool:
    """Whether all that a stage reads is; of a training whose checkpoint is scored, that is the snapshot."""
    return all(
        any(other.key == key and (other.state is StageState.COMPLETE or plan.snapshot in other.snapshots) for other in others)
        for key in plan.inputs.values()
    )


def _all_records(snapshot: Snapshot, steps: list[Step]) -> list[StageStatus]:
    known = {step.plan.key: step.status for step in steps}
    return [known.get(plan.key) or _record(snapshot, plan) for plan in snapshot.plan]


def _answer(snapshot: Snapshot, steps: list[Step], now: datetime) -> Decision:
    finished = all(step.status.state is StageState.COMPLETE for step in steps)
    phase = Phase.COMPLETE if finished else _phase(snapshot, steps)
    summary = summarize(snapshot, [step.status for step in steps], phase, None, now)
    events = [event for step in steps for event in step.events]
    if finished:
        # One event tells that the last stage is complete and all is; it would be every third request of a one-pod experiment.
        events = [event for event in events if event not in steps[-1].events or event.reason != "StageComplete"]
        events.append(Event(reason="Complete", message=summary.results.score if summary.results else "every stage is complete"))
    events += changes(snapshot.status, summary)
    wake = [moment for step in steps for moment in step.wake]
    look_again = max(0.0, (min(wake) - now).total_seconds()) if wake else None
    actions: list[Action] = [action for step in steps for action in step.actions]
    planned = {plan.key for plan in snapshot.plan}
    # Stages that a newer operator keys differently leave pods that no stage asks for.
    actions += _let_go(snapshot, (pod for pod in snapshot.pods if pod.name.stage not in planned))
    return Decision(status=summary, actions=tuple(actions), events=tuple(events), look_again=look_again)


def _phase(snapshot: Snapshot, steps: list[Step]) -> Phase:
    """Pending until a first pod runs: what waits for room, an image or a claim is not running."""
    running = any(step.status.state is StageState.RUNNING for step in steps)
    if snapshot.experiment.spec.suspend and not running:
        return Phase.SUSPENDED
    ran = snapshot.status.phase is Phase.RUNNING or any(step.status.artifact or step.status.last_step for step in steps)
    runs = any(pod.started or pod.phase is PodPhase.RUNNING for step in steps for pod in step.pods)
    return Phase.RUNNING if ran or runs else Phase.PENDING


def _fail(snapshot: Snapshot, steps: list[Step], refusal: Refusal, now: datetime) -> Decision:
    """Ends the experiment: pods that ended stay for their logs, the others save and go."""
    failed = steps[-1]
    failure = Failure(
        reason=refusal.reason, stage=failed.plan.name, pod=refusal.pod, exit_code=refusal.exit_code, message=refusal.message[:4096]
    )
    records = [_stopped(record) for record in _all_records(snapshot, steps)]
    summary = summarize(snapshot, records, Phase.FAILED, failure, now)
    actions = _let_go(snapshot, snapshot.pods)
    events = [event for step in steps for event in step.events]
    events.append(Event(reason=refusal.reason, message=refusal.message, warning=True))
    return Decision(status=summary, actions=actions, events=tuple(events))


def _stopped(record: StageStatus) -> StageStatus:
    """A stage that ran beside the one that failed: nothing of it runs any more."""
    if record.state is not StageState.RUNNING:
        return record
    return record.model_copy(update={"state": StageState.SUSPENDED, "workers": [], "retry_time": None, "below_min_since": None})


def _clean_up(snapshot: Snapshot, now: datetime) -> Decision:
    """Complete and Failed are for ever; only pods that still live are asked to go, those of a complete stage once they had time to end."""
    complete = {stage.key: stage.completion_time for stage in snapshot.status.stages if stage.state is StageState.COMPLETE}
    going = [pod for pod in snapshot.pods if stages.overstays(pod, snapshot.pods, complete.get(pod.name.stage), now)]
    waiting = any(pod.alive for pod in snapshot.pods if pod not in going)
    # Nothing comes of an edit any more, but it was seen: tools wait for that.
    status = snapshot.status.model_copy(update={"observed_generation": snapshot.experiment.metadata.generation})
    return Decision(status=status, actions=_let_go(snapshot, going), look_again=stages.LAST_WORDS.total_seconds() if waiting else None)


def _let_go(snapshot: Snapshot, pods: Iterable[Pod]) -> tuple[DeletePod, ...]:
    return tuple(DeletePod(name=pod.name, grace_seconds=snapshot.settings.grace_seconds) for pod in pods if pod.alive)


def _progress_due(snapshot: Snapshot, now: datetime) -> bool:
    last = snapshot.status.progress.last_updated if snapshot.status.progress else None
    return last is None or (now - last).total_seconds() >= snapshot.settings.status_seconds

"""The life of one stage: it begins, goes on, is suspended, is complete.

`advance` runs down one list of steps. Each looks at the pods of the current attempt and either lets the next one look too or
settles the matter: the stage fails, or its attempt begins again. That it is complete was seen before.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from transfer_api.progress import Progress, ResultMessage
from transfer_api.status import ArtifactStatus, Cause, StageState, WorkerRecord
from transfer_operator.decide.deadlines import below_min_for_too_long, check_startup, give_back, stalled
from transfer_operator.decide.decision import CreatePod, Event, Refusal
from transfer_operator.decide.snapshot import Pod, PodName, Role
from transfer_operator.decide.step import Step
from transfer_operator.decide.verdict import Replace
from transfer_operator.decide.workers import count, judge, judge_rendezvous, judge_workers, replace_workers

LAST_WORDS = timedelta(seconds=30)
"""Time in which the pods of a complete stage end by themselves, so that their logs are whole and stay readable."""
OVERDUE = timedelta(minutes=1)
"""How long after its grace a pod that was told to go is waited for: a node that answers has killed it long before."""
MOST_PASSED_OVER = 64
"""As many as the status has room for."""
WHY = 400
"""Most characters of why a judge did not answer that stand in a message."""


def begin(step: Step) -> None:
    """Begins a new attempt: new pods, new rendezvous id, progress kept."""
    now = step.around.now
    step.change(
        state=StageState.RUNNING,
        attempt=step.status.attempt + 1,
        workers=[WorkerRecord(index=index) for index in range(step.desired)],
        max_workers=max(step.plan.pods(step.around.spec.workers.max or 0), step.desired),
        rendezvous_seen=False,
        start_time=step.status.start_time or now,
        retry_time=step.status.retry_time if step.status.retry_time and step.status.retry_time > now else None,
        below_min_since=None,
        last_step_time=now,
    )
    for pod in step.pods:
        step.delete(pod)
    create_missing(step)


def advance(step: Step) -> None:
    """Moves a running stage on by one call."""
    if not step.status.workers:  # resumed before the suspension was over
        begin(step)
        return
    incidents = judge_workers(step)
    over = judge_rendezvous(step) or next((incident for *_, incident in incidents if incident.attempt_over), None)
    if step.refusal is not None:
        return
    if over is not None:  # the ends of its workers are its echo
        restart(step, over)
        return
    if not replace_workers(step, incidents):
        return
    if step.desired > step.status.max_workers:
        restart(
            step, Replace(cause=Cause.SAVED, message=f"{step.desired} workers are wanted; the rendezvous was for {step.status.max_workers}")
        )
        return
    resize(step)
    if stalled(step):
        seconds = step.around.spec.deadlines.stall_seconds
        restart(step, Replace(cause=Cause.STALL, message=f"no step for {seconds} s while pods ran"))
    elif below_min_for_too_long(step):
        give_back(step)
    else:
        check_startup(step)
        remove_strangers(step)  # before its successor is made, so that no index ever has two pods that live
        create_missing(step)


def restart(step: Step, incident: Replace) -> None:
    """Counts an incident of the whole attempt and begins the next one."""
    count(step, incident)
    step.events.append(Event(reason="AttemptRestarted", message=f"{step.plan.name}: {incident.message} ({incident.cause})", warning=True))
    if step.refusal is None:
        step.change(message=incident.message[:1024])
        begin(step)


def suspend(step: Step) -> None:
    """Asks every pod to save and end; the stage is suspended once they are gone, or cannot be waited for any longer.

    From now on no pod is wanted, so none that goes is an incident, whether or not the experiment is resumed meanwhile.
    """
    step.refusal = next((result for pod in step.pods if isinstance(result := judge(pod), Refusal)), None)
    for pod in step.pods:
        step.delete(pod)
    now, grace = step.around.now, timedelta(seconds=step.around.settings.grace_seconds)
    going = [pod for pod in step.pods if not pod.ended and not pod.refused]
    silent = [pod for pod in going if is_silent(pod, now)]
    step.wake += [(pod.gone_by or now + grace) + OVERDUE for pod in going if pod not in silent]
    state = StageState.SUSPENDED if going == silent else StageState.RUNNING
    step.change(state=state, workers=[], rendezvous_seen=False, retry_time=None, below_min_since=None)
    if state is StageState.SUSPENDED and silent:
        names = ", ".join(str(pod.name) for pod in silent)
        step.change(message=f"suspended without the end of {names}: the node does not answer, and may still run what was there"[:1024])


def is_silent(pod: Pod, now: datetime) -> bool:
    """Whether nobody will tell the end of a pod that was told to go: its node was given up, or lets the pod outlive its grace.

    It may still run there. So may any pod that is replaced, and what both of them save is fenced.
    """
    return pod.terminating and (pod.lost or (pod.gone_by is not None and now >= pod.gone_by + OVERDUE))


def complete(step: Step, pod: Pod) -> None:
    """Records the artifact that a pod named."""
    assert pod.result is not None
    assert pod.result.artifact is not None
    artifact = pod.result.artifact
    step.change(
        state=StageState.COMPLETE,
        completion_time=step.around.now,
        artifact=ArtifactStatus(path=artifact.path, digest=artifact.digest, reused=pod.result.reused, provisional=pod.result.provisional),
        productive_seconds=max(step.status.productive_seconds, round(pod.result.productive_seconds)),
        lost_steps=max(step.status.lost_steps, pod.result.lost_steps),
        last_step=max(step.status.last_step, pod.result.step),
        retry_time=None,
        message=left_out(pod.result),
    )
    step.events.append(Event(reason="StageComplete", message=f"{step.plan.name}: {artifact.path}"))
    if pod.result.provisional:
        step.events.append(Event(reason="AnswersNotJudged", message=f"{step.plan.name}: {left_out(pod.result)}", warning=True))


def left_out(result: ResultMessage) -> str:
    """What is missing of a stage that is complete all the same."""
    if not result.provisional:
        return ""
    why = f" ({result.message[:WHY].rstrip('.')})" if result.message else ""
    return (
        f"{result.unjudged} answers have no scores, since a judge did not answer{why}; all else is kept, and another run asks only for them"
    )


def let_end(step: Step) -> None:
    """Lets the pods of a complete stage end by themselves, and the store after them; those that ended stay for their logs."""
    for pod in step.pods:
        if overstays(pod, step.pods, step.status.completion_time, step.around.now):
            step.delete(pod)
        elif pod.alive:
            step.wake.append((step.status.completion_time or step.around.now) + LAST_WORDS)


def overstays(pod: Pod, pods: Iterable[Pod], completed: datetime | None, now: datetime) -> bool:
    """Whether a pod lives that should not: its stage is not complete (`completed` is None) or long so, or it is a store alone."""
    others = any(other.alive and other.name.role is Role.WORKER for other in pods if other.name.stage == pod.name.stage)
    alone = pod.name.role is Role.RENDEZVOUS and not others
    return pod.alive and (completed is None or alone or now - completed >= LAST_WORDS)


def note_progress(step: Step) -> None:
    """Takes the highest step that any pod tells of, the snapshots and the damaged checkpoints; a new highest ends the back-off."""
    best = latest_progress(step.pods)
    if best is None:
        return
    if set(best.snapshots) - set(step.status.snapshots):
        step.change(snapshots=sorted({*step.status.snapshots, *best.snapshots}))
    damaged = set(best.passed_over) - set(step.status.passed_over)
    if damaged:
        step.change(passed_over=sorted({*step.status.passed_over, *damaged})[-MOST_PASSED_OVER:])
    for number in sorted(damaged):
        message = f"{step.plan.name}: the checkpoint of step {number} is damaged and was passed over; the log of {best.pod} says why"
        step.events.append(Event(reason="CheckpointPassedOver", message=message, warning=True))
    if not (step.around.note_progress or best.step == best.total_steps):
        return
    if best.step > step.status.last_step:
        step.change(last_step=best.step, last_step_time=step.around.now, fruitless=0, retry_time=None)
    step.change(
        productive_seconds=max(step.status.productive_seconds, round(best.productive_seconds)),
        lost_steps=max(step.status.lost_steps, best.lost_steps),
    )


def latest_progress(pods: tuple[Pod, ...]) -> Progress | None:
    """The progress of the pod that is furthest: in the newest attempt and round, at the highest step.

    Of each worker only the newest generation that tells any: pods without a rendezvous all begin with round 0, and one that crashed in a
    later round would be taken for the furthest for ever.
    """
    newest: dict[tuple[int, int], tuple[PodName, Progress]] = {}
    for pod in sorted(pods, key=lambda pod: pod.name.generation):
        if pod.progress is not None:
            newest[pod.name.attempt, pod.name.index] = pod.name, pod.progress
    found = max(newest.values(), key=lambda one: (one[0].attempt, one[1].round, one[1].step), default=None)
    return found[1] if found else None


def resize(step: Step) -> None:
    """Retires the highest indices when fewer workers are wanted; brings them back, or adds new ones, when more are."""
    known = {record.index for record in step.status.workers}
    for record in step.status.workers:
        if record.index >= step.desired and not record.retired:
            pod = step.pod(step.name(record))
            if pod is not None:
                step.delete(pod)
            step.put(record.model_copy(update={"retired": True}))
        elif record.index < step.desired and record.retired:
            # The old pod may still be saving: its name is taken, so the index comes back as the next generation.
            step.put(WorkerRecord(index=record.index, generation=record.generation + 1, cause=Cause.SAVED, message="scaled up"))
    added = [WorkerRecord(index=index) for index in range(step.desired) if index not in known]
    if added:
        step.change(workers=[*step.status.workers, *added])


def create_missing(step: Step) -> None:
    """Asks for every pod that a record wants and that is not there. Creating one twice is harmless: the name is the same."""
    if step.refusal is not None:
        return
    retry = step.status.retry_time
    if retry is not None and retry > step.around.now:
        step.wake.append(retry)
        return
    if retry is not None:
        step.change(retry_time=None)
    store = step.pod(step.rendezvous)
    if step.meets and (store is None or store.refused):
        _create(step, step.rendezvous)
    for record, pod in step.wanted():
        if pod is not None and not pod.refused:
            continue
        if record.retry_time is not None and record.retry_time > step.around.now:
            step.wake.append(record.retry_time)
        else:
            _create(step, step.name(record))


def _create(step: Step, name: PodName) -> None:
    step.actions.append(CreatePod(name=name, stage=step.plan, min_nodes=step.min_nodes, max_nodes=step.status.max_workers))


def remove_strangers(step: Step) -> None:
    """Deletes pods that no record asks for: older attempts, replaced generations, retired indices; but for what people want to read."""
    asked = {step.name(record) for record, _ in step.wanted()} | ({step.rendezvous} if step.meets else set())
    for pod in step.pods:
        if pod.name not in asked and pod not in step.last_crashes:
            step.delete(pod)

"""What takes too long: pods that do not start, too few that run, steps that do not come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from transfer_api.status import Reason, StageState
from transfer_operator.decide.decision import Event, Refusal
from transfer_operator.decide.snapshot import PodPhase
from transfer_operator.decide.step import Step

PATIENCE = timedelta(seconds=30)
"""How long volumes and images may take before a pod counts as one that waits for them."""


def stalled(step: Step) -> bool:
    """Whether enough pods run and yet no step was done for too long.

    A step that is done again counts as one: after a crash the highest step seen is not passed before the next checkpoint is. Only who
    could have told of a step is blamed for none: not before the pods are asked, and never where no pod has ever answered, as behind a
    policy that lets nobody ask.
    """
    now = step.around.now
    running = [pod for _, pod in step.wanted() if pod is not None and pod.alive and pod.phase is PodPhase.RUNNING]
    if len(running) < step.min_nodes:
        return False
    enough = sorted(pod.started or pod.created for pod in running)[step.min_nodes - 1]
    answers = [pod.progress for pod in running if pod.progress is not None]
    if not (answers or step.status.last_step or step.around.reachable):
        return False
    told = [answer.last_step_time for answer in answers if answer.last_step_time is not None]
    steps = [min(now, datetime.fromtimestamp(time, UTC)) for time in told]  # clocks differ: none is ahead of ours
    asked = step.around.asked_since or enough if not told else enough
    return step.overdue(max([enough, asked, step.status.last_step_time or enough, *steps]), step.around.spec.deadlines.stall_seconds)


def below_min_for_too_long(step: Step) -> bool:
    """Whether too few workers hold nodes for too long. Pods that all wait hold nothing and go on waiting."""
    running = sum(1 for _, pod in step.wanted() if pod is not None and pod.alive and pod.phase is PodPhase.RUNNING)
    if running == 0 or running >= step.min_nodes:
        if step.status.below_min_since is not None:
            step.change(below_min_since=None)
        return False
    if step.status.below_min_since is None:
        step.change(below_min_since=step.around.now)
    assert step.status.below_min_since is not None
    return step.overdue(step.status.below_min_since, step.around.spec.deadlines.below_min_seconds)


def give_back(step: Step) -> None:
    """Releases the nodes for a while, so that two half-started experiments cannot block each other."""
    # Different keys wait differently long: the one that comes back first finds room for all of its workers.
    wait = timedelta(seconds=30 + int(step.plan.key[:4], 16) % 60)
    step.change(state=StageState.WAITING, retry_time=step.around.now + wait, below_min_since=None, workers=[])
    step.change(message=f"fewer than {step.min_nodes} workers could run; their nodes are given back for {wait.seconds} s")
    step.events.append(Event(reason="GaveNodesBack", message=f"{step.plan.name}: {step.status.message}", warning=True))
    step.wake.append(step.around.now + wait)


def check_startup(step: Step) -> None:
    """Fails a stage whose pods do not start, unless enough others train meanwhile."""
    wanted = [pod for _, pod in step.wanted() if pod is not None]
    if step.plan.shared and sum(1 for pod in wanted if pod.phase is PodPhase.RUNNING) >= step.min_nodes:
        wanted = []
    if step.meets and (store := step.pod(step.rendezvous)) is not None:
        wanted.append(store)
    limit = step.around.spec.deadlines.startup_seconds
    # The summary begins to tell of these then, which may be when nothing else happens.
    soon = [pod.created + PATIENCE for pod in wanted if pod.alive and pod.on_its_way]
    step.wake += [moment for moment in soon if moment > step.around.now]
    for pod in wanted:
        if pod.alive and not pod.queued and pod.phase is PodPhase.PENDING and step.overdue(pod.placed or pod.created, limit):
            message = f"{pod.name} did not start in {limit} s: {pod.waiting or 'no reason given'}"
            step.refusal = Refusal(reason=Reason.STARTUP_DEADLINE_EXCEEDED, pod=str(pod.name), message=message)
            return

"""The incidents of a stage: which of its pods ended, what that counts for, and which generation is wanted next."""

from __future__ import annotations

from datetime import timedelta

from transfer_api.status import Cause, Reason, WorkerRecord
from transfer_operator.decide.decision import Event, Refusal
from transfer_operator.decide.snapshot import Pod
from transfer_operator.decide.step import Step
from transfer_operator.decide.verdict import RAN_OUT, Replace, Verdict, verdict

FIRST_BACKOFF = timedelta(seconds=10)
LONGEST_BACKOFF = timedelta(minutes=5)
ECHO = timedelta(minutes=1)
OUT_OF_MEMORY_WAYS = (
    "lower microBatchTokens or sequenceLength, set activationCheckpointing: Always, use method LoRA, or "
    "raise workers.resources.limits.memory"
)

Incident = tuple[WorkerRecord, Pod | None, Replace]


def judge_workers(step: Step) -> list[Incident]:
    """Finds the incidents of the wanted generations. Nothing is counted yet: where one worker says why it cannot work, the
    others' crashes are its echo.
    """
    incidents: list[Incident] = []
    for record, pod in list(step.wanted()):
        result = _judge_wanted(pod, record.seen)
        if isinstance(result, Refusal):
            step.refusal = step.refusal or result
        elif isinstance(result, Replace):
            incidents.append((record, pod, result))
        elif pod is not None and not record.seen and not pod.refused:
            step.put(record.model_copy(update={"seen": True}))
    return incidents


def judge_rendezvous(step: Step) -> Replace | None:
    """Why the workers have no store to meet at any more; None while they have one, or it is yet to come."""
    if not step.meets:
        return None
    pod = step.pod(step.rendezvous)
    result = _judge_wanted(pod, step.status.rendezvous_seen)
    if isinstance(result, Refusal):
        step.refusal = step.refusal or result
    elif isinstance(result, Replace):
        return Replace(cause=result.cause, message=f"rendezvous: {result.message}")
    elif pod is not None and not step.status.rendezvous_seen and not pod.refused:
        step.change(rendezvous_seen=True)
    return None


def _judge_wanted(pod: Pod | None, seen: bool) -> Verdict | None:
    if pod is not None:
        return judge(pod)
    return Replace(cause=Cause.INFRASTRUCTURE, message="the pod is gone without a trace") if seen else None


def judge(pod: Pod) -> Verdict | None:
    """What the end of a pod means; None for one that lives."""
    return None if pod.alive else verdict(pod)


def replace_workers(step: Step, incidents: list[Incident]) -> bool:
    """Each incident counts once and moves one record on; False where that spends a budget.

    What ran out of memory goes first: it explains the crashes beside it.
    """
    for record, pod, incident in sorted(incidents, key=lambda one: not one[2].out_of_memory):
        if pod is None or not is_echo(step, pod, incident):
            count(step, incident, pod)
        if step.refusal is not None:
            return False
        replace(step, record, incident, rejected=pod is not None and pod.rejected)
    return True


def is_echo(step: Step, pod: Pod, incident: Replace) -> bool:
    """Whether a crash belongs to one that was counted already.

    Workers that run in step crash together, within seconds; a budget must not depend on how many of them there are. The
    pods that replace them are younger than the crash, so whatever they do counts again.
    """
    crash = step.status.crash_time
    if crash is None or incident.cause is not Cause.APPLICATION or (incident.out_of_memory and not step.status.out_of_memory):
        return False
    return pod.created < crash and step.around.now - crash <= ECHO


def replace(step: Step, record: WorkerRecord, incident: Replace, *, rejected: bool = False) -> None:
    """Asks for the next generation of one worker: at once, or, where node after node rejects it, after a while."""
    rejections = record.rejections + 1 if rejected else 0
    wait = backoff(rejections)
    new = WorkerRecord(
        index=record.index, generation=record.generation + 1, cause=incident.cause, message=incident.message[:512],
        rejections=rejections, retry_time=step.around.now + wait if wait else None,
    )  # fmt: skip
    step.put(new)
    words = f"{step.name(record)}: {incident.message}"
    step.change(message=words[:1024])
    step.events.append(Event(reason="WorkerReplaced", message=f"{words} ({incident.cause})", warning=incident.cause is not Cause.SAVED))


def count(step: Step, incident: Replace, pod: Pod | None = None) -> None:
    """Counts an incident, backs off where our own code keeps failing, and refuses when a budget is spent."""
    restarts = step.status.restarts.plus(incident.cause)
    step.change(restarts=restarts, out_of_memory=step.status.out_of_memory + incident.out_of_memory)
    if incident.cause is Cause.APPLICATION:
        step.change(crash_time=step.around.now)
    if incident.cause in (Cause.APPLICATION, Cause.STALL):
        step.change(fruitless=step.status.fruitless + 1)
        if wait := backoff(step.status.fruitless):
            step.change(retry_time=step.around.now + wait)
    limit = getattr(step.around.spec.restarts, incident.cause.value, None)
    spent = (step.around.spent + restarts).count(incident.cause)
    if incident.out_of_memory and step.status.out_of_memory > 1:
        reason = Reason.OUT_OF_MEMORY
        words = f"ran out of memory twice; {OUT_OF_MEMORY_WAYS if incident.message == RAN_OUT else incident.message}"
    elif limit is not None and spent > limit:
        reason = Reason.RESTART_LIMIT_EXCEEDED
        words = f"{incident.message}; the {incident.cause} budget of {limit} restarts is spent (spec.restarts.{incident.cause})"
    else:
        return
    name, code = (str(pod.name), pod.exit_code) if pod is not None else ("", None)
    step.refusal = Refusal(reason=reason, message=f"{step.plan.name}: {words}", pod=name, exit_code=code)


def backoff(fruitless: int) -> timedelta:
    """Wait before the try after so many failures in a row: 0, 10, 20, 40 … 300 s."""
    if fruitless <= 1:
        return timedelta()
    factor: int = 2 ** min(fruitless - 2, 10)
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * factor)

"""What the end of a pod means: the tables "Exit codes" and "Restarts" of docs/concepts.md, as code."""

from __future__ import annotations

from dataclasses import dataclass

from transfer_api.errors import ExitCode
from transfer_api.progress import Outcome
from transfer_api.status import Cause, Reason
from transfer_operator.decide.decision import Refusal
from transfer_operator.decide.snapshot import Pod

# How a pod ends that somebody deletes: not yet, by SIGTERM, or by SIGKILL after its grace. So it counts alike whenever it is seen.
ASKED_TO_STOP = (None, 143, ExitCode.KILLED)


RAN_OUT = "ran out of memory"
"""Of a pod that the kernel killed before it could say what to change."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """The stage is complete."""


@dataclass(frozen=True, kw_only=True)
class Replace:
    """The pod is to be replaced, on the budget of `cause`."""

    cause: Cause
    message: str
    out_of_memory: bool = False
    attempt_over: bool = False
    """None of the attempt's pods can go on, nor could those that replaced them."""


Verdict = Done | Replace | Refusal


def verdict(pod: Pod) -> Verdict:
    """Judges a pod that ended, or that is being deleted by somebody else.

    Order matters: a preempted pod may well carry an exit code of its own dying, and what the data or the spec did wrong
    stays wrong however the pod was treated.
    """
    if pod.exit_code == ExitCode.COMPLETE:
        if pod.result is not None and pod.result.outcome is Outcome.COMPLETE and pod.result.artifact is not None:
            return Done()
        said = _words(pod, "")
        return Replace(cause=Cause.APPLICATION, message=f"ended with code 0 but named no artifact{f': {said}' if said else ''}")
    if pod.exit_code == ExitCode.CANNOT_WORK:
        return _refuse(pod, Reason.CANNOT_WORK)
    if pod.exit_code == ExitCode.UNREADABLE:
        return _refuse(pod, Reason.CHECKPOINT_UNREADABLE)
    if pod.exit_code == ExitCode.SUPERSEDED:
        # Only pods that are wanted are judged. So two others make the stage too, and are not to take turns with it for ever: it is counted.
        return Replace(cause=Cause.APPLICATION, message=_words(pod, "others have taken the stage over"), attempt_over=True)
    if pod.disrupted:
        return Replace(cause=Cause.PREEMPTION, message=_words(pod, "preempted, drained or evicted"))
    if pod.out_of_memory:
        return Replace(cause=Cause.APPLICATION, message=_words(pod, RAN_OUT), out_of_memory=True)
    if pod.exit_code == ExitCode.SAVED or (pod.terminating and not pod.lost and pod.exit_code in ASKED_TO_STOP):
        return Replace(cause=Cause.SAVED, message=_words(pod, "asked to stop"))
    if pod.lost or pod.exit_code is None:
        return Replace(cause=Cause.INFRASTRUCTURE, message=_words(pod, "lost without an exit code"))
    return Replace(cause=Cause.APPLICATION, message=_words(pod, f"crashed with code {pod.exit_code}"))


def _refuse(pod: Pod, reason: Reason) -> Refusal:
    message = _words(pod, f"ended with code {pod.exit_code}", longest=4096)
    return Refusal(reason=reason, message=message, pod=str(pod.name), exit_code=pod.exit_code)


def _words(pod: Pod, otherwise: str, longest: int = 500) -> str:
    """The pod's own last words, which say more than its code; whole where they end the experiment, short where there may be many."""
    said = pod.result.message if pod.result is not None else ""
    return (said or otherwise)[:longest]

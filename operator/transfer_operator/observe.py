"""A pod object of the API server as `decide` sees a pod. Pure.

Whatever a pod, or whoever may write pods, puts into the object is untrusted: strange content is left out, and nothing here raises. Only
what is read here is worth remembering, so `strip` stands beside it and `observe(strip(body))` is `observe(body)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from transfer_api.errors import ExitCode
from transfer_api.progress import Outcome, Progress, ResultMessage
from transfer_operator.decide import Pod, PodPhase
from transfer_operator.manifest import CONTAINER, QUEUE, parse_name

Body = dict[str, Any]
Json = Mapping[str, Any]

# Tuples, not sets: what is looked up in them may be anything, also what cannot be hashed.
# Reasons of the condition DisruptionTarget that tell of a node that is gone; every other one tells of a pod that had to make room.
NODE_GONE = ("DeletionByTaintManager", "DeletionByDeviceTaintManager", "DeletionByPodGC")
# DisruptionTarget is Kubernetes' own, TerminationTarget is what Kueue sets before it deletes a pod that it preempts.
DISRUPTIONS = ("DisruptionTarget", "TerminationTarget")
# Reasons of a whole pod that the kubelet ended to make room, in versions and cases in which it sets no condition.
EVICTED = ("Evicted", "Preempting", "Terminated", "Shutdown", "NodeShutdown")
NODE_LOST = "NodeLost"
STATUS_UNKNOWN = "ContainerStatusUnknown"
OUT_OF_MEMORY = "OOMKilled"
START_ERRORS = ("StartError", "ContainerCannotRun")
# The kernel may have killed a worker process for memory earlier, and the pod went on: these ends speak for themselves.
OWN_ENDS = (ExitCode.COMPLETE, ExitCode.SAVED)

WAITING_LENGTH = 300
LAST_WORDS_LENGTH, LAST_LINES = 400, 5
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@|\bhf_[A-Za-z0-9]{8,}|(?i:(?<=bearer )\S+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_PULL_BACKOFF = re.compile(r'^Back-off pulling image "[^"]*": ErrImagePull: ')
_KEPT_METADATA = (
    "name", "namespace", "uid", "resourceVersion", "labels", "creationTimestamp", "deletionTimestamp", "ownerReferences",
)  # fmt: skip
_KEPT_CONDITIONS = (*DISRUPTIONS, "PodScheduled", "PodReadyToStartContainers")


def observe(body: Json, progress: Progress | None = None) -> Pod | None:
    """The pod that an object stands for; None for one that is not ours, by its labels, or has no time of creation.

    Args:
        body: the object, whole or stripped.
        progress: what the pod last told of its progress.
    """
    name, seen = parse_name(body), _Seen.of(body)
    created = time_of(seen.metadata.get("creationTimestamp"))
    if name is None or created is None:
        return None
    phase = seen.phase
    code = seen.exit_code
    deletion = seen.metadata.get("deletionTimestamp")
    terminating = deletion is not None
    disruption = seen.disruption
    node_gone = seen.status.get("reason") == NODE_LOST or disruption.get("reason") in NODE_GONE
    disrupted = not node_gone and (bool(disruption) or seen.status.get("reason") in EVICTED)
    out_of_memory = seen.terminated.get("reason") == OUT_OF_MEMORY and code not in OWN_ENDS
    ended = phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)
    # Process 1 of a container cannot be killed from within. Where somebody asked the pod to end, though, its end is what was asked for.
    killed = ended and code in (None, ExitCode.KILLED) and not (out_of_memory or terminating or disrupted)
    rejected = ended and seen.never_ran
    queued, placed = seen.queue()
    waiting, on_its_way = _waiting(seen) if phase is PodPhase.PENDING else ("", False)
    return Pod(
        name=name,
        phase=phase,
        created=created,
        started=time_of(seen.running.get("startedAt")) or time_of(seen.terminated.get("startedAt")),
        terminating=terminating,
        gone_by=time_of(deletion),
        exit_code=code,
        out_of_memory=out_of_memory,
        disrupted=disrupted,
        lost=node_gone or killed or seen.could_not_start,
        waiting=_cut(waiting),
        on_its_way=on_its_way,
        rejected=rejected,
        queued=queued,
        placed=placed,
        result=_result(seen) if ended or terminating else None,
        progress=progress,
    )


def strip(body: Json) -> Body:
    """What is worth remembering of a pod: a fraction of its size, with which `observe` gives the same answer."""
    seen = _Seen.of(body)
    status: Body = {field: seen.status[field] for field in ("phase", "reason", "message", "podIP") if field in seen.status}
    status["conditions"] = [
        {field: condition[field] for field in ("type", "status", "reason", "message", "lastTransitionTime") if field in condition}
        for condition in seen.conditions()
        if condition.get("type") in _KEPT_CONDITIONS
    ]
    if seen.container:
        status["containerStatuses"] = [{"name": CONTAINER, "state": _stripped_state(seen)}]
    volumes = [{"persistentVolumeClaim": {"claimName": claim}} for claim in seen.claims()]
    return {
        "metadata": {field: seen.metadata[field] for field in _KEPT_METADATA if field in seen.metadata},
        "spec": {"nodeName": seen.spec.get("nodeName"), "volumes": volumes},
        "status": status,
    }


def _stripped_state(seen: _Seen) -> Body:
    fields = ("reason", "message", "exitCode", "startedAt")
    states = {"waiting": seen.waiting, "running": seen.running, "terminated": seen.terminated}
    return {name: {field: state[field] for field in fields if field in state} for name, state in states.items() if seen.is_in(name)}


def time_of(value: object) -> datetime | None:
    """An RFC 3339 time in UTC; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class _Seen:
    """The parts of a pod object, each a mapping whatever was there."""

    metadata: Json
    spec: Json
    status: Json
    container: Json
    """Status of our container; what others inject beside it says nothing about the stage."""

    @classmethod
    def of(cls, body: Json) -> _Seen:
        status = _mapping(body.get("status"))
        ours = (one for one in _mappings(status.get("containerStatuses")) if one.get("name") == CONTAINER)
        return cls(_mapping(body.get("metadata")), _mapping(body.get("spec")), status, next(ours, {}))

    def is_in(self, state: str) -> bool:
        """Whether our container is waiting, running or terminated, even where nothing more is said."""
        return isinstance(_mapping(self.container.get("state")).get(state), Mapping)

    @property
    def waiting(self) -> Json:
        return _mapping(_mapping(self.container.get("state")).get("waiting"))

    @property
    def running(self) -> Json:
        return _mapping(_mapping(self.container.get("state")).get("running"))

    @property
    def terminated(self) -> Json:
        return _mapping(_mapping(self.container.get("state")).get("terminated"))

    def conditions(self) -> Iterator[Json]:
        yield from _mappings(self.status.get("conditions"))

    def condition(self, kind: str, status: str) -> Json:
        """The condition of a type if it has that status."""
        return next((one for one in self.conditions() if one.get("type") == kind and one.get("status") == status), {})

    @property
    def disruption(self) -> Json:
        return next((found for kind in DISRUPTIONS if (found := self.condition(kind, "True"))), {})

    def claims(self) -> list[str]:
        volumes = (_mapping(volume.get("persistentVolumeClaim")) for volume in _mappings(self.spec.get("volumes")))
        return [name for volume in volumes if isinstance(name := volume.get("claimName"), str)]

    @property
    def could_not_start(self) -> bool:
        """Whether the node could not start our container, as without the runtime hook of its GPUs; `exec` is the image's fault."""
        return self.terminated.get("reason") in START_ERRORS and "exec: " not in _text(self.terminated.get("message"))

    @property
    def never_ran(self) -> bool:
        """Whether our container never ran; of a pod that has ended."""
        return self.could_not_start or not (self.is_in("terminated") or self.is_in("running"))

    def queue(self) -> tuple[bool, datetime | None]:
        """Whether a queue still holds the pod back, and when its pod was placed."""
        if not _text(_mapping(self.metadata.get("labels")).get(QUEUE)):
            return False, None
        placed = self.condition("PodScheduled", "True")
        return not placed, time_of(placed.get("lastTransitionTime"))

    @property
    def exit_code(self) -> int | None:
        """Of our container; none where the kubelet only supposes one."""
        code = self.terminated.get("exitCode")
        known = isinstance(code, int) and not isinstance(code, bool) and 0 <= code <= 255
        return code if known and self.terminated.get("reason") != STATUS_UNKNOWN else None

    @property
    def phase(self) -> PodPhase:
        """By our container first: a pod with something injected goes on when ours has ended, and Unknown says nothing."""
        if self.is_in("terminated"):
            return PodPhase.SUCCEEDED if self.exit_code == ExitCode.COMPLETE else PodPhase.FAILED
        said = self.status.get("phase")
        if said in (PodPhase.SUCCEEDED, PodPhase.FAILED):
            return PodPhase(said)
        return PodPhase.RUNNING if self.is_in("running") else PodPhase.PENDING


def _waiting(seen: _Seen) -> tuple[str, bool]:
    """Why a pod does not start: the kubelet's words, else the scheduler's, else what is known to be under way (then: true)."""
    reason, message = _text(seen.waiting.get("reason")), _text(seen.waiting.get("message"))
    if reason in ("ErrImagePull", "ImagePullBackOff"):  # takes turns with the same cause
        return f"ImagePull: {_PULL_BACKOFF.sub('', message)}", False
    if reason not in ("", "ContainerCreating", "PodInitializing"):
        return f"{reason}: {message}" if message else reason, False
    if unscheduled := seen.condition("PodScheduled", "False"):
        return _unscheduled(seen, unscheduled), False
    node = _text(seen.spec.get("nodeName"))
    if not node:
        return "", False
    if seen.condition("PodReadyToStartContainers", "True"):
        return f"ContainerCreating: node {node} pulls the image", True
    claims = ", ".join(_text(claim) for claim in seen.claims())
    return f"ContainerCreating: node {node} mounts {f'claim {claims}' if claims else 'the volumes'}", True


def _unscheduled(seen: _Seen, condition: Json) -> str:
    reason, message = _text(condition.get("reason")) or "Unscheduled", _text(condition.get("message"))
    queue = _text(_mapping(seen.metadata.get("labels")).get(QUEUE))
    if reason == "SchedulingGated" and queue:
        return f"{reason}: waits until queue {queue} admits it (does the LocalQueue exist, has it quota?)"
    return f"{reason}: {message}" if message else reason


def _result(seen: _Seen) -> ResultMessage | None:
    """What the pod said at its end; where it could not say it in our form, its last words, or else those of who ended it."""
    message = seen.terminated.get("message")
    if isinstance(message, str) and message.strip():
        try:
            return _decoded(message)
        except ValueError as error:
            if seen.exit_code == ExitCode.COMPLETE:
                return ResultMessage(outcome=Outcome.FAILED, reason="UnreadableResult", message=f"its result is none: {_text(str(error))}")
        return ResultMessage(outcome=Outcome.FAILED, reason="Crash", message=last_words(message))
    for source in (seen.disruption, seen.status):
        reason, why = _text(source.get("reason")), _text(source.get("message"))
        if reason:
            words = _cut(f"{reason}: {why}" if why else reason, LAST_WORDS_LENGTH)
            return ResultMessage(outcome=Outcome.FAILED, reason=reason[:64], message=words)
    return None


def _decoded(message: str) -> ResultMessage:
    """Raises a ValueError (also for half a surrogate pair) that says why it is no result."""
    result = ResultMessage.read(message)
    # An exception's text may quote an address with a password, and what stands here goes into status and events.
    return result.model_copy(update={"message": _text(result.message), "reason": _text(result.reason)})


def last_words(log: str) -> str:
    """The end of a log: its last lines that fit, without credentials."""
    lines = [line for raw in log.splitlines() if (line := _text(raw))][-LAST_LINES:]
    while len(lines) > 1 and len(" | ".join(lines)) > LAST_WORDS_LENGTH:
        lines.pop(0)
    return _cut(" | ".join(lines), LAST_WORDS_LENGTH)


def _text(value: object) -> str:
    """One line without control characters and credentials; empty for what is not a text."""
    if not isinstance(value, str):
        return ""
    return _CREDENTIALS.sub("…", " ".join(_CONTROL.sub(" ", value).split()))


def _cut(text: str, limit: int = WAITING_LENGTH) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _mapping(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> Iterator[Json]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))

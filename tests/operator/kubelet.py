"""Nodes in a few lines: pods start, work and end; what they have made stays in a storage.

Training goes on while enough workers of one attempt run, a step every quarter of a second, and from the last step that was
done: whatever happens, the storage holds the same artifact in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.operator.api_server import ApiServer
from tests.operator.virtual_time import now
from transfer_api.progress import ArtifactReference, Outcome, Progress, ResultMessage, Score
from transfer_api.stage import StageKind
from transfer_operator import manifest
from transfer_operator.decide import Role

Body = dict[str, Any]

START_S = 1.0
SAVE_S = 1.0
PLAIN_S = 2.0
"""What a stage takes that does not train."""
STEPS = 80
STEP_S = 0.25
GOING = ("Pending", "Running")


class Paced(dict[str, float]):
    """A training of which a quarter of a second does only so many steps."""

    def __init__(self, pace: float) -> None:
        super().__init__()
        self._pace = pace

    def __setitem__(self, key: str, value: float) -> None:
        super().__setitem__(key, self.get(key, 0.0) + 5 * self._pace)


@dataclass
class Kubelet:
    """All nodes of a cluster."""

    server: ApiServer
    steps: dict[str, float] = field(default_factory=dict)
    """Steps done of each training, by stage key: the checkpoints in the storage."""
    told: dict[str, Progress] = field(default_factory=dict)
    """What each pod answers to `/progress`, by UID."""
    starts: Callable[[Body], bool] = lambda pod: True
    silent: Callable[[Body], bool] = lambda pod: False
    """Pods whose node does not answer: nothing becomes of them, whatever is asked."""
    code: Callable[[Body], int | None] = lambda pod: None
    """An exit code with which a pod ends soon after it has begun, instead of working."""

    meeting: bool = False
    """Whether the workers are between two rounds: they tell of the one before."""

    async def work(self) -> None:
        """Moves every pod on, for ever."""
        while True:
            await asyncio.sleep(STEP_S)
            for pod in self._going():
                if not self.silent(pod):
                    self._move(pod)
            if not self.meeting:
                self._train()

    def _going(self) -> list[Body]:
        """Pods of which something may still become."""
        return [pod for pod in self.server.every("pods") if pod["status"]["phase"] in GOING or "deletionTimestamp" in pod["metadata"]]

    def _move(self, pod: Body) -> None:
        phase, meta = pod["status"]["phase"], pod["metadata"]
        since = (now() - _time(pod["status"].get("since") or meta["creationTimestamp"])).total_seconds()
        if "deletionTimestamp" in meta:
            if phase != "Running":
                self.server.remove("pods", meta["namespace"], meta["name"])
            elif (now() - _time(meta["deletionTimestamp"])).total_seconds() >= SAVE_S:
                self.end(pod, 75)
        elif phase == "Pending" and since >= START_S and self.starts(pod):
            self.put(pod, "Running", {"running": {"startedAt": _now()}})
        elif phase == "Running" and (code := self.code(pod)) is not None and since >= 2 * STEP_S:
            self.end(pod, code)
        elif phase == "Running" and _role(pod) == Role.WORKER and _kind(pod) != StageKind.PRETRAINING and since >= PLAIN_S:
            self.end(pod, 0)

    def _train(self) -> None:
        groups: dict[str, list[Body]] = {}
        for pod in self._going():
            if pod["status"]["phase"] == "Running" and _role(pod) == Role.WORKER and _kind(pod) == StageKind.PRETRAINING:
                groups.setdefault(_key(pod), []).append(pod)
        for key, pods in groups.items():
            step = self.steps[key] = min(STEPS, self.steps.get(key, 0) + 1)
            world = sum(map(_processes, pods))
            for pod in pods:
                self.told[pod["metadata"]["uid"]] = Progress(
                    step=int(step), total_steps=STEPS, world_size=world, loss=1.5, last_step_time=now().timestamp(),
                    productive_seconds=step * STEP_S,
                )  # fmt: skip
                if step >= STEPS:
                    self.end(pod, 0)

    def end(self, pod: Body, code: int, message: str | None = None) -> None:
        """A pod ends with a code."""
        if message is None:
            message = _complete(pod).encode() if code == 0 else ""
        state = {"terminated": {"exitCode": code, "message": message, "startedAt": _now()}}
        self.put(pod, "Succeeded" if code == 0 else "Failed", state)

    def lose(self, pod: Body) -> None:
        """A node dies, and the pod with it: its object vanishes without a word."""
        self.server.remove("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])

    def put(self, pod: Body, phase: str, state: Body) -> None:
        """Writes a pod's status."""
        place = ("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        current = self.server.objects[place]
        status = {
            "phase": phase, "podIP": "10.0.0.1", "since": _now(),
            "containerStatuses": [{"name": manifest.CONTAINER, "state": state}],
        }  # fmt: skip
        self.server.put("pods", {**current, "spec": {**current["spec"], "nodeName": "node-1"}, "status": status})


def _complete(pod: Body) -> ResultMessage:
    kind = _kind(pod)
    artifact = ArtifactReference(key=_key(pod), path=f"artifacts/{kind}/{_key(pod)}", digest="sha256:0")
    score = Score(suite="perplexity", task="id", language="id", metric="bits_per_byte", value=1.25, items=10)
    return ResultMessage(
        outcome=Outcome.COMPLETE, artifact=artifact, scores=[score] if kind == StageKind.EVALUATION else [],
        step=STEPS if kind == StageKind.PRETRAINING else 0,
    )  # fmt: skip


def _key(pod: Body) -> str:
    return str(pod["metadata"]["labels"][manifest.STAGE_KEY])


def _kind(pod: Body) -> str:
    return str(pod["metadata"]["labels"][manifest.STAGE])


def _role(pod: Body) -> str:
    return str(pod["metadata"]["labels"][manifest.ROLE])


def _processes(pod: Body) -> int:
    return next(int(one["value"]) for one in pod["spec"]["containers"][0]["env"] if one["name"] == "TRANSFER_PROCESSES")


def _now() -> str:
    return now().isoformat().replace("+00:00", "Z")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)

"""The local backend with its evaluation pods run one after the other in this process: stage, storage and heart are the real ones.

What it leaves out is the start of a Python for each pod, five seconds of imports; tests/local has whole runs with processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from transfer_cli.local import LocalBackend, LocalPod
from transfer_evaluator.stage import run
from transfer_operator.decide import CreatePod
from transfer_pod.shard import run_shard


@dataclass
class Ended:
    """What is left of a process."""

    code: int

    def poll(self) -> int:
        return self.code


class InProcessBackend(LocalBackend):
    """A pod is over when `create` returns."""

    def create(self, action: CreatePod) -> None:
        name = str(action.name)
        if name in self.pods or not self._may_make(action.stage):
            return
        context = self._context(action, processes=1)
        code = run_shard(context, run)
        self.pods[name] = LocalPod(
            name=action.name, process=cast(Any, Ended(code)), created=datetime.now(UTC), port=context.port,
            termination_log=context.termination_log,
        )  # fmt: skip

    def kill_all(self) -> None:
        for lock in self._locks.values():
            lock.release()

"""Runs a stage that needs no rendezvous: one process, one piece of work, served while it lasts."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from transfer_api.errors import SaveRequested
from transfer_api.progress import Activity, Progress, ResultMessage
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_pod.end import finish
from transfer_pod.server import PodServer, ProgressFile

Report = Callable[[Progress], None]
Stage = Callable[[PodContext, Report], ResultMessage]


def run_shard(context: PodContext, stage: Stage) -> int:
    """Runs a stage in this process and returns the pod's exit code.

    A finished artifact is not made again. SIGTERM ends the work at once with 75: a shard keeps no state, and whatever it
    had committed is found by the next try.
    """

    def work() -> ResultMessage:
        return finished(context) or _served(context, stage)

    return finish(context.termination_log, work)


def finished(context: PodContext) -> ResultMessage | None:
    """The result of an earlier run of this very stage, if its artifact is in the storage."""
    return ArtifactStore(context.storage).result(context.stage.kind, context.stage.key)


def _served(context: PodContext, stage: Stage) -> ResultMessage:
    with tempfile.TemporaryDirectory(prefix="transfer-") as folder:
        file = ProgressFile(Path(folder) / "progress.json")
        server = PodServer(context.port, file.read, context.listen).start()

        def report(progress: Progress) -> None:
            file.write(progress.model_copy(update={"pod": context.pod, "stage": context.stage.name}))

        report(Progress(activity=Activity.LOADING))
        previous = signal.signal(signal.SIGTERM, _stop)
        try:
            return stage(context, report)
        finally:
            signal.signal(signal.SIGTERM, previous)
            server.stop()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SaveRequested("stopped on request; the stage is done again from its inputs")

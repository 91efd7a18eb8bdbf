"""Runs a stage that needs no rendezvous: one process, one piece of work, served while it lasts.

A pod that tells of nothing new for long counts as stalled and is restarted. So each report carries the time, and a report is
made when work has advanced; what cannot tell how far it is (loading a model, hashing an artifact) is put under `at_work`.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from transfer_api.errors import SaveRequested
from transfer_api.progress import Activity, Progress, ResultMessage
from transfer_pod.artifact import ArtifactStore
from transfer_pod.contents import check_contents
from transfer_pod.context import PodContext
from transfer_pod.end import finish
from transfer_pod.server import PodServer, ProgressFile

Report = Callable[[Progress], None]
Stage = Callable[[PodContext, Report], ResultMessage]

BEAT_SECONDS = 10.0
LONGEST_CALL_SECONDS = 4 * 3600.0
"""A single call that takes longer hangs: from then on the stall deadline runs."""


def run_shard(context: PodContext, stage: Stage) -> int:
    """Runs a stage in this process and returns the pod's exit code.

    A finished artifact is not made again. SIGTERM ends the work at once with 75: a shard keeps no state, and whatever it
    had committed is found by the next try.
    """

    def work() -> ResultMessage:
        if done := finished(context):
            return done
        check_contents(context)
        return _served(context, stage)

    return finish(context.termination_log, context.storage, work)


def finished(context: PodContext) -> ResultMessage | None:
    """The result of an earlier run of this very stage, if its artifact is in the storage and need not be made again."""
    return ArtifactStore(context.storage).settled(context.stage.kind, context.stage.key)


def _served(context: PodContext, stage: Stage) -> ResultMessage:
    with tempfile.TemporaryDirectory(prefix="transfer-") as folder:
        file = ProgressFile(Path(folder) / "progress.json")
        server = PodServer(context.port, file.read, context.listen, context.labels).start()

        lock = threading.Lock()

        def write(progress: Progress) -> None:
            told = {"pod": context.pod, "stage": context.stage.name, "last_step_time": time.time()}
            with lock:
                file.write(progress.model_copy(update=told))

        def report(progress: Progress) -> None:
            opening.close()
            write(progress)

        with contextlib.ExitStack() as opening:
            # Models are fetched and loaded, libraries imported, before a stage can tell of anything.
            opening.enter_context(at_work(write, Progress(activity=Activity.LOADING)))
            previous = signal.signal(signal.SIGTERM, _stop)
            try:
                return stage(context, report)
            finally:
                signal.signal(signal.SIGTERM, previous)
                server.stop()


@contextlib.contextmanager
def at_work(report: Report, progress: Progress) -> Iterator[None]:
    """Tells the same progress again and again while one call runs that takes long and cannot tell of itself."""
    over = threading.Event()
    until = time.monotonic() + LONGEST_CALL_SECONDS

    def beat() -> None:
        while not over.wait(BEAT_SECONDS) and time.monotonic() < until:
            report(progress)

    report(progress)
    thread = threading.Thread(target=beat, name="at-work", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SaveRequested("stopped on request; the stage is done again from its inputs")

"""`transfer run`: one experiment on this machine, by the state machine that runs the cluster.

The loop is the operator's in small: look, decide, write the status, act. All it adds is a lock, so that two runs do not
share one folder, the wish to stop (Ctrl-C is `suspend: true`), and at the end what people want to have: report and model.
"""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from transfer_api.errors import ArtifactError, ExitCode, StorageError, TransferError
from transfer_api.load import load_experiment
from transfer_api.progress import Progress, ResultMessage
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StagePlan
from transfer_api.status import ExperimentStatus, Failure, Phase, Reason, StageState, StageStatus
from transfer_cli import lock, preflight
from transfer_cli.display import Display, open_display
from transfer_cli.local import LocalBackend
from transfer_cli.main import INTERRUPTED
from transfer_cli.outputs import (
    STATUS,
    claim,
    output_errors,
    read_status,
    set_status_aside,
    write_outputs,
    write_report_alone,
    write_status,
)
from transfer_cli.paths import chosen_storage, default_output, folder
from transfer_operator.decide import CreatePod, Decision, Settings, Snapshot, decide
from transfer_operator.decide.summary import summarize
from transfer_pod.artifact import ArtifactStore, write_atomically
from transfer_pod.server import PodServer

LOOK_EVERY_S = 0.25

# One stage at a time, since they would only slow each other down; the status file is cheap to write.
SETTINGS = Settings(parallel_stages=1, grace_seconds=120, status_seconds=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, help="experiment file")
    parser.add_argument("--output", type=folder, metavar="DIR", help="report, results, status and model (default: runs/NAME)")
    parser.add_argument(
        "--storage", type=folder, metavar="DIR",
        help="models, data, checkpoints and artifacts (default: $TRANSFER_STORAGE or runs/.storage)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics on this port while running; 0 for any that is free"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the experiment, or goes on with it. Exit codes: 0, 2, 10, 11, 75 (saved on Ctrl-C), 130 (killed by a second one)."""
    experiment = load_experiment(options.file)
    storage = chosen_storage(options.storage)
    output = (options.output or default_output(experiment.metadata.name)).absolute()
    return start(experiment, storage=storage, output=output, search=(options.file.absolute().parent,), metrics_port=options.metrics_port)


def start(
    experiment: TransferExperiment,
    *,
    storage: Path,
    output: Path,
    search: tuple[Path, ...],
    metrics_port: int | None = None,
    kept: Mapping[str, str] | None = None,
) -> int:
    """Checks an experiment and runs it; returns the exit code.

    Args:
        experiment: what to run.
        storage: root of the storage.
        output: folder for report, results, status and model.
        search: further folders in which relative paths are looked up.
        metrics_port: where to serve metrics, if anywhere.
        kept: files that are to lie in the output folder too, by name.

    Raises:
        SpecErrors: it cannot work.
    """
    kept = kept or {}
    plan = preflight.check(experiment, storage=storage, output=output, search=search, metrics_port=metrics_port, kept=kept)
    session = Session(
        experiment=experiment,
        plan=plan,
        storage=storage,
        output=output,
        backend=LocalBackend(experiment=experiment, storage=storage, search=search, logs=output / "logs"),
    )
    name = experiment.metadata.name
    claim(output, name)
    with lock.hold(output, name), open_display(experiment, plan) as display, _metrics(metrics_port, session, display):
        with output_errors(output):
            session.backend.logs.mkdir(parents=True, exist_ok=True)
            for file, content in kept.items():
                write_atomically(output / file, content)
        return session.run(display)


@dataclass
class Session:
    """One `transfer run`."""

    experiment: TransferExperiment
    plan: tuple[StagePlan, ...]
    storage: Path
    output: Path
    backend: LocalBackend
    stop: threading.Event = field(default_factory=threading.Event)
    progress: Progress | None = None
    """What the running stage tells now."""

    def run(self, display: Display) -> int:
        """Loops until the experiment is complete, failed or suspended."""
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # What is ignored stays so: nohup wants the run to outlive its terminal.
        signals = {one: signal.signal(one, self._interrupt) for one in wanted if signal.getsignal(one) is not signal.SIG_IGN}
        try:
            status = self._recorded(display)
            if status.phase is not Phase.COMPLETE:
                status = self._loop(status, display)
            return self._finish(status, display)
        except _KilledError:
            self.backend.kill_all()
            display.line("Stopped at once. The same command goes on from the last checkpoint.")
            return INTERRUPTED
        except TransferError as error:
            # Too late for "refused": the error's own code says what the operator would do.
            display.line(f"{error}", style="red")
            return error.exit_code
        finally:
            self.backend.kill_all()
            for number, handler in signals.items():
                signal.signal(number, handler)

    def _loop(self, status: ExperimentStatus, display: Display) -> ExperimentStatus:
        acknowledged = False
        while True:
            if self.stop.is_set() and not acknowledged:
                acknowledged = True
                display.line(
                    "Stopping: what runs is saved first. Once more stops at once, and loses what was done since the last checkpoint."
                )
            snapshot = self._look(status)
            decision = decide(snapshot, datetime.now(UTC))
            status = self._write(status, decision)
            waited = set(self.backend.waiting)
            self._act(decision)
            for stage in sorted(self.backend.waiting - waited):
                display.line(f"{stage}: waits for another run on this storage that makes the same stage")
            display.update(status, self.progress, decision.events)
            if (status.phase.terminal or status.phase is Phase.SUSPENDED) and not any(pod.alive for pod in snapshot.pods):
                return status
            time.sleep(LOOK_EVERY_S)

    def _look(self, status: ExperimentStatus) -> Snapshot:
        pods = self.backend.observe()
        told = [pod.progress for pod in pods if pod.progress is not None and pod.alive]
        self.progress = max(told, key=lambda progress: (progress.round, progress.step), default=None)
        spec = self.experiment.spec
        experiment = self.experiment.model_copy(update={"spec": spec.model_copy(update={"suspend": spec.suspend or self.stop.is_set()})})
        return Snapshot(
            experiment=experiment, plan=self.plan, status=status, pods=pods, artifacts=self._finished(status), settings=SETTINGS
        )

    def _finished(self, status: ExperimentStatus) -> dict[str, ResultMessage]:
        """Artifacts of stages that the status does not know to be complete, but for provisional ones, which are made again."""
        complete = {stage.key for stage in status.stages if stage.state is StageState.COMPLETE}
        store = ArtifactStore(self.storage)
        results = {stage.key: store.settled(stage.kind, stage.key) for stage in self.plan if stage.key not in complete}
        return {key: result for key, result in results.items() if result is not None}

    def _write(self, old: ExperimentStatus, decision: Decision) -> ExperimentStatus:
        """Leaves the status for others to read; that all is complete they read once they can have it (`_finish`)."""
        changed = decision.status != old or not (self.output / STATUS).exists()
        if changed and decision.status.phase is not Phase.COMPLETE:
            write_status(self.output, decision.status)
        return decision.status

    def _act(self, decision: Decision) -> None:
        for action in decision.actions:
            if isinstance(action, CreatePod):
                with output_errors(self.output):  # its log
                    self.backend.create(action)
            else:
                self.backend.delete(action)

    def _recorded(self, display: Display) -> ExperimentStatus:
        """The status of an earlier run of this very experiment, if there is something to go on from."""
        try:
            status = read_status(self.output)
        except ArtifactError:
            status = None
            display.line(f"The status cannot be read; it is now {set_status_aside(self.output)}. Finished stages are found again.")
        keys = [stage.key for stage in self.plan]
        if status is None or [stage.key for stage in status.stages] != keys or status.phase is Phase.FAILED:
            return ExperimentStatus()
        store = ArtifactStore(self.storage)

        def made(stage: StagePlan | StageStatus) -> bool:
            return store.settled(stage.kind, stage.key) is not None

        if status.phase is Phase.COMPLETE:
            return status if all(map(made, self.plan)) else ExperimentStatus()
        # Its pods died with the process that ran them: stopped, not lost, so nothing is counted. And what was made may have been removed.
        stages = [_stopped(stage) if stage.state is StageState.RUNNING else stage for stage in status.stages]
        stages = [_forgotten(stage) if stage.state is StageState.COMPLETE and not made(stage) else stage for stage in stages]
        return status.model_copy(update={"stages": stages})

    def _finish(self, status: ExperimentStatus, display: Display) -> int:
        if status.phase is Phase.COMPLETE:
            try:
                scores = write_outputs(self.experiment, self.plan, status, storage=self.storage, output=self.output)
            except TransferError as error:
                status = self._not_given(status, error)
            else:
                write_status(self.output, status)
                display.finish(status, scores, self.output)
                return ExitCode.COMPLETE
        if status.phase is Phase.SUSPENDED:
            asked = self.experiment.spec.suspend
            display.line("Suspended: set spec.suspend to false to go on." if asked else "Saved. The same command goes on from here.")
            return ExitCode.SAVED
        failure = status.failure
        display.failed(status, self.output)
        if failure is not None and failure.reason is Reason.BEYOND_MARGIN:  # the curves are what people want to see now
            write_report_alone(self.experiment, self.plan, status, storage=self.storage, output=self.output)
            display.line(f"Report: {self.output}/report.html")
        unreadable = failure is not None and failure.reason is Reason.CHECKPOINT_UNREADABLE
        return ExitCode.UNREADABLE if unreadable else ExitCode.CANNOT_WORK

    def _not_given(self, status: ExperimentStatus, error: TransferError) -> ExperimentStatus:
        """Every stage is complete, and what they made cannot be given to people: the experiment has failed."""
        unreadable = error.exit_code is ExitCode.UNREADABLE
        reason = Reason.CHECKPOINT_UNREADABLE if unreadable else Reason.CANNOT_WORK
        failure = Failure(reason=reason, exit_code=error.exit_code, message=str(error)[:4096])
        snapshot = Snapshot(experiment=self.experiment, plan=self.plan, status=status, pods=(), artifacts={}, settings=SETTINGS)
        failed = summarize(snapshot, status.stages, Phase.FAILED, failure, datetime.now(UTC))
        with suppress(StorageError):  # where report and model have no room
            write_status(self.output, failed)
        return failed

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set():
            raise _KilledError
        self.stop.set()


def _stopped(stage: StageStatus) -> StageStatus:
    return stage.model_copy(update={"state": StageState.SUSPENDED, "workers": [], "rendezvous_seen": False, "retry_time": None})


def _forgotten(stage: StageStatus) -> StageStatus:
    return StageStatus(name=stage.name, kind=stage.kind, key=stage.key)


class _KilledError(Exception):
    """A second Ctrl-C."""


@contextmanager
def _metrics(port: int | None, session: Session, display: Display) -> Iterator[None]:
    if port is None:
        yield
        return
    names = session.experiment.metadata
    server = PodServer(port, lambda: session.progress, labels={"experiment": names.name, "namespace": names.namespace}).start()
    display.line(f"Metrics: http://localhost:{server.port}/metrics")
    try:
        yield
    finally:
        server.stop()

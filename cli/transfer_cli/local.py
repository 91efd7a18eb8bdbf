"""The local backend: pods are processes of this machine.

They get the same environment, run the same launcher, end with the same exit codes and leave the same termination message
as pods of a cluster, so `decide` cannot tell the difference. What a kubelet would do is done here: start, look, ask to
stop, kill after the grace period, keep the log.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from transfer_api.errors import ExitCode
from transfer_api.progress import Progress, ResultMessage
from transfer_api.spec import TransferExperiment, is_harness_suite
from transfer_api.stage import StagePlan, needs_hub
from transfer_api.task import program
from transfer_cli.gpus import VARIABLE, usable_gpus, worker_share
from transfer_operator.decide import CreatePod, DeletePod, Pod, PodPhase, Role
from transfer_operator.decide.snapshot import PodName
from transfer_pod.context import PodContext, find_input
from transfer_pod.lock import StageLock
from transfer_pod.memory import OutOfMemory

LOOPBACK = "127.0.0.1"
PROGRESS_TIMEOUT_S = 0.5

# The kernel kills a pod when `transfer run` dies, however it dies: nothing is left that could write into the storage
# beside the next run. Set between fork and exec by a Python that imports nothing, since a fork handler would run arbitrary
# code in a process that may hold locks. PR_SET_PDEATHSIG is 1; os.getppid catches a parent that died before.
_LEASH = (
    "import ctypes, os, signal, sys;"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL) if sys.platform == 'linux' else None;"
    "os._exit(1) if os.getppid() != int(sys.argv[1]) else os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass
class LocalPod:
    """One process with what a pod object would say of it."""

    name: PodName
    process: subprocess.Popen[bytes]
    created: datetime
    port: int
    termination_log: Path
    out_of_memory: bool | None = None
    """Set once it has ended."""
    kill_at: datetime | None = None
    """Set when deletion was asked for."""
    progress: Progress | None = None

    def observe(self, *, killed_for_memory: bool) -> Pod:
        """The pod as `decide` sees it; `killed_for_memory` when the kernel has just killed one of ours for want of memory."""
        code = self.process.poll()
        result = self._result() if code is not None else None
        # A process that died by a signal has no exit code of its own, as a pod whose node is gone.
        lost = code is not None and code < 0
        if code is not None and self.out_of_memory is None:
            self.out_of_memory = killed_for_memory and code not in (ExitCode.COMPLETE, ExitCode.SAVED) and self.kill_at is None
        phase = PodPhase.RUNNING if code is None else PodPhase.SUCCEEDED if code == 0 else PodPhase.FAILED
        return Pod(
            name=self.name,
            phase=phase,
            created=self.created,
            started=self.created,
            terminating=self.kill_at is not None,
            exit_code=None if lost else code,
            lost=lost,
            out_of_memory=self.out_of_memory is True,
            result=result,
            progress=self.progress,
        )

    def ask(self) -> None:
        """Fetches the pod's progress; keeps the last one where it does not answer."""
        if self.name.role is Role.RENDEZVOUS or self.process.poll() is not None:
            return
        address = f"http://{LOOPBACK}:{self.port}/progress"
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(address, timeout=PROGRESS_TIMEOUT_S) as answer:
            self.progress = Progress.model_validate_json(answer.read())

    def _result(self) -> ResultMessage | None:
        try:
            return ResultMessage.decode(self.termination_log.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


@dataclass
class LocalBackend:
    """Starts, observes and stops the pods of one experiment.

    Must be used from the thread that created it: the kernel ties a child's life to the thread that started it.
    """

    experiment: TransferExperiment
    storage: Path
    search: tuple[Path, ...]
    logs: Path
    """Folder of the pods' logs, one file a pod."""
    pods: dict[str, LocalPod] = field(default_factory=dict)
    memory: OutOfMemory = field(default_factory=OutOfMemory)
    _stores: dict[str, int] = field(default_factory=dict)
    """Port of the rendezvous store of each attempt."""
    _locks: dict[str, StageLock] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    """Names of the stages that another run on this storage is making."""
    lineage: str = field(default_factory=lambda: secrets.token_hex(8))
    """Of this one run: the next one may count its attempts from 1 again, and no pod of this one is left then."""

    def observe(self) -> tuple[Pod, ...]:
        """Every pod as it is now. Pods that ended after their deletion was asked for are forgotten, as a kubelet does."""
        now = datetime.now(UTC)
        for key, pod in list(self.pods.items()):
            if pod.kill_at is not None and pod.process.poll() is not None:
                del self.pods[key]
            elif pod.kill_at is not None and now >= pod.kill_at:
                self._kill(pod)
            else:
                pod.ask()
        killed = self.memory.killed_lately(now)
        return tuple(pod.observe(killed_for_memory=killed) for pod in self.pods.values())

    def create(self, action: CreatePod) -> None:
        """Starts a pod unless there is one of its name, or another run makes the stage: it is asked for again at the next look."""
        name = str(action.name)
        if name in self.pods or not self._may_make(action.stage):
            return
        gpus = self._gpus(action)
        context = self._context(action, processes=max(1, len(gpus)) if action.stage.kind.elastic else 1)
        environment = os.environ | context.environment() | self._surroundings(action, gpus)
        context.termination_log.unlink(missing_ok=True)
        command = [sys.executable, "-m", program(action.stage.kind, rendezvous=action.name.role is Role.RENDEZVOUS)]
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is for `transfer run`, which then asks the pods to save
            )  # fmt: skip
        self.pods[name] = LocalPod(
            name=action.name, process=process, created=datetime.now(UTC), port=context.port, termination_log=context.termination_log
        )

    def delete(self, action: DeletePod) -> None:
        """Asks a pod to end; it is killed when its grace period is over."""
        pod = self.pods.get(str(action.name))
        if pod is None or pod.kill_at is not None:
            return
        pod.kill_at = datetime.now(UTC) + timedelta(seconds=action.grace_seconds)
        if pod.process.poll() is None:
            pod.process.send_signal(signal.SIGTERM)

    def kill_all(self) -> None:
        """Ends every pod at once."""
        for pod in self.pods.values():
            self._kill(pod)
        for pod in self.pods.values():
            pod.process.wait()
        for lock in self._locks.values():
            lock.release()

    def _may_make(self, stage: StagePlan) -> bool:
        free = self._locks.setdefault(stage.key, StageLock(self.storage, stage)).take()
        (self.waiting.discard if free else self.waiting.add)(stage.name)
        return free

    def _kill(self, pod: LocalPod) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pod.process.pid, signal.SIGKILL)

    def _context(self, action: CreatePod, processes: int) -> PodContext:
        name, attempt = str(action.name), action.name.attempt_name
        if action.name.role is Role.RENDEZVOUS:
            self._stores[attempt] = free_port()
        store = self._stores.get(attempt)
        return PodContext(
            stage=action.stage,
            experiment=self.experiment.metadata.name,
            namespace=self.experiment.metadata.namespace,
            storage=self.storage,
            search=self.search,
            pod=name,
            attempt=attempt,
            lineage=self.lineage,
            attempt_number=action.name.attempt,
            generation=action.name.generation,
            index=action.name.index,
            address=LOOPBACK,
            port=free_port(),
            rendezvous=f"{LOOPBACK}:{store}" if store else "",
            processes=processes,
            min_nodes=action.min_nodes,
            max_nodes=action.max_nodes,
            termination_log=self.logs / f"{name}.termination",
        )

    def _tasks_are_here(self) -> bool:
        """Whether the data of every suite is: in the task folders or in a mirror; the harness's own ones may fetch their questions."""
        wanted = self.experiment.spec.evaluation
        if wanted is None or wanted.mirror is not None:
            return True
        folders = [find_input(folder, (self.storage, *self.search)) for folder in wanted.task_folders]
        return all(
            any(True for folder in folders for _ in folder.rglob(f"{suite}.yaml")) for suite in wanted.suites if is_harness_suite(suite)
        )

    def _gpus(self, action: CreatePod) -> list[str]:
        """The GPUs of one pod: all that this process may use, a worker's share of them, or one for each shard in turn."""
        workers = self.experiment.spec.workers.replicas
        if action.stage.kind.elastic:
            return worker_share(workers, action.name.index % workers)
        here, shards = usable_gpus(), action.stage.execution.shards
        return here if shards == 1 or not here else [here[action.name.index % len(here)]]

    def _surroundings(self, action: CreatePod, gpus: list[str]) -> dict[str, str]:
        """Its GPUs, cores shared among the workers, and no network where the experiment names no hub."""
        cores = len(os.sched_getaffinity(0))
        workers = action.stage.pods(self.experiment.spec.workers.replicas)
        variables = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers))),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        if gpus:
            variables[VARIABLE] = ",".join(gpus)
        if not needs_hub(self.experiment.spec) and self._tasks_are_here():
            variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        return variables


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port

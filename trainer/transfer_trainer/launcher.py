"""The launcher of a training pod: light, there from start to end, while its worker processes come and go.

It serves /metrics, /progress and /healthz, meets the other pods (membership.py), has a worker process per GPU for each round,
and turns how they end into the pod's exit code and termination message. The loop is our own rather than torch's agent, which
kills workers where ours save first, counts a peer's death as a failure of its own, and cannot leave a rendezvous.

    worker ends with                    the launcher
    0     artifact in place             ends with 0, closes the rendezvous
    75    saved, this pod was asked     leaves the rendezvous, ends with 75
    76    saved, membership changes     joins the next round
    77    a peer is gone                joins the next round; after twelve times without a step in between ends with 1
    10, 11 cannot work                  ends with that code and the worker's message
    78    the attempt is over           closes the rendezvous, so that no pod of it goes on, and ends with 78
    79    hangs: stacks logged, killed   joins the next round, as after a crash
    other crash                         joins the next round; after two crashes without a step in between ends with 1
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import transfer_api.errors
from transfer_api.errors import ExitCode, SaveRequested, Superseded, TransferError
from transfer_api.progress import Activity, Outcome, Progress, ResultMessage
from transfer_pod.contents import check_contents
from transfer_pod.context import PodContext
from transfer_pod.end import finish, write_termination_message
from transfer_pod.memory import OutOfMemory, memory_limit
from transfer_pod.server import PodServer, ProgressFile
from transfer_pod.shard import finished
from transfer_trainer.membership import Membership, RendezvousOverError, Round, membership
from transfer_trainer.oom import memory_advice
from transfer_trainer.watchdog import DUMP_SIGNAL, Watchdog, process_state, pulse_file, stacks_file, top, waits_for_peer
from transfer_trainer.worker import ERROR, LEAVE, LOST, PROGRESS, REGROUP, RUN_FOLDER, End, explain
from transfer_trainer.workers import Workers

logger = logging.getLogger(__name__)

CRASHES = 2
"""Crashes of this pod's workers without a finished step in between, after which the pod gives up and the operator counts it."""
PEER_LOSSES = 12
"""Rounds that end with "a peer is gone" without a finished step in between, after which it is taken for a lasting fault of the network.
More than peers that crash at once can cause while the operator, which waits longer each time, replaces them."""
POLL_SECONDS, WAITING_SECONDS = 0.1, 1.0
STACKS_SECONDS = 3.0
"""Wait for a worker to write its stacks."""
PEER_GRACE = 0.5
"""Share of a step's time that one who waits for another gets on top."""
SECOND_SIGNAL_SECONDS = 2.0
"""A signal repeated sooner is the same wish arriving twice (terminal and backend); later, it means: now."""
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
"""Workers keep freed memory, and have it in huge pages. By default each large tensor is mapped anew and its pages faulted in one by
one: a quarter of a million faults in a step of a 135M model, 5 to 20 % of its time on two virtual cores."""


_FINAL = (ExitCode.CANNOT_WORK, ExitCode.UNREADABLE, ExitCode.SUPERSEDED)
"""What no other round of this pod would change."""


class WorkerCrashError(Exception):
    """The worker processes crash again and again."""


def launch(context: PodContext) -> int:
    """Runs an elastic stage in this pod and returns the pod's exit code."""
    with tempfile.TemporaryDirectory(prefix="transfer-") as folder:
        launcher = Launcher(context, Path(folder))
        code = finish(context.termination_log, context.storage, launcher.run)
        if code == ExitCode.SAVED:
            progress = launcher.file.read() or Progress()
            write_termination_message(context.termination_log, _message(Outcome.SAVED, progress, message="saved on request"))
        return code


class Launcher:
    """One pod of an elastic stage.

    Args:
        context: the pod's task.
        folder: a folder of this process alone, shared with its workers.
        memory: what the kernel counts of its kills; default: of this process's control group.
    """

    def __init__(self, context: PodContext, folder: Path, memory: OutOfMemory | None = None) -> None:
        self.context = context
        self.folder = folder
        self.memory = memory or OutOfMemory()
        self._nodes = 1
        self.file = ProgressFile(folder / PROGRESS)
        self.asked_at: float | None = None
        self._waiting = True  # in code that a signal may leave at once
        self._crashes = _Row(CRASHES)
        self._peer_losses = _Row(PEER_LOSSES)

    def run(self) -> ResultMessage:
        """Serves, trains and returns the result.

        Raises:
            SaveRequested: it was asked to stop, and everything is saved.
            TransferError: what a worker could not do.
            WorkerCrashError: the workers crash again and again.
        """
        if done := finished(self.context):
            return done
        server = PodServer(self.context.port, self.file.read, self.context.listen, self.context.labels).start()
        self._tell(Activity.STARTING)
        self.workers = Workers(self._environment())
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._rounds()
        finally:
            self._waiting = False
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.workers.close()
            server.stop()

    def _environment(self) -> dict[str, str]:
        """Of every worker."""
        environment = {**os.environ, **self.context.environment(), RUN_FOLDER: str(self.folder), "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.context.processes)))
        if self.context.address.startswith("127."):
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo takes the address of the host's name
        environment.setdefault("GLIBC_TUNABLES", MALLOC)
        return environment

    def _rounds(self) -> ResultMessage:
        self._tell(Activity.LOADING)  # not yet a node that the others could wait for
        members = membership(self.context)
        try:
            while True:
                self._tell(Activity.RENDEZVOUS)
                place = self._join(members)
                end = self._round(members, place) if place is not None else ExitCode.COMPLETE
                if done := finished(self.context):
                    members.close()
                    return self._complete(done)
                self._judge(end)
        except Superseded:
            members.close()
            raise
        except BaseException:
            members.leave()
            raise

    def _join(self, members: Membership) -> Round | None:
        """The next round, or None when the rendezvous was closed because the stage is done.

        Raises:
            SaveRequested: it was asked to stop.
            Superseded: the rendezvous was closed, and the stage is not done.
        """
        if self.asked_at is not None:
            raise SaveRequested("saved on request")
        self._waiting = True
        try:
            place = members.join()
        except RendezvousOverError as error:
            if finished(self.context) is None:
                raise Superseded("another pod of the attempt has found that it is over") from error
            return None
        finally:
            self._waiting = False
        logger.info("round %d: node %d of %d", place.round, place.node, place.nodes)
        return place

    def _round(self, members: Membership, place: Round) -> int:
        """Runs the workers of a round; returns how they ended."""
        check_contents(self.context)  # they load the base model anew
        for pattern in (REGROUP, f"{ERROR}-*.json", f"{LOST}-*.json", "pulse-*", "stacks-*"):
            for old in self.folder.glob(pattern):
                old.unlink()
        processes, self._nodes = self.context.processes, place.nodes
        everywhere = {
            "TRANSFER_ROUND": str(place.round),
            "TRANSFER_INCARNATION": place.incarnation,
            "WORLD_SIZE": str(place.nodes * processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": place.address,
            "MASTER_PORT": str(place.port),
        }
        ranks = ({"LOCAL_RANK": str(rank), "RANK": str(place.node * processes + rank)} for rank in range(processes))
        self.workers.start([{**everywhere, **own} for own in ranks])
        return self._watch(members)

    def _watch(self, members: Membership) -> int:
        """Waits for the workers; returns how they ended, the gravest first. A node that waits has them save and end."""
        looked = time.monotonic()
        dogs = {rank: Watchdog(pulse_file(self.folder, rank)) for rank in range(self.context.processes)}
        waiting: dict[int, int] = {}
        while len(codes := self.workers.codes()) < self.context.processes:
            time.sleep(POLL_SECONDS)
            if any(code not in (ExitCode.COMPLETE, ExitCode.SAVED, End.REGROUP) for code in codes.values()):
                self.workers.kill()  # the rest would only wait for the one that is gone
                break
            for rank, dog in dogs.items():
                if rank not in codes and dog.look(time.monotonic()) and (end := self._overdue(rank, dog, waiting)) is not None:
                    self.workers.kill()
                    return end
            if time.monotonic() - looked > WAITING_SECONDS:
                looked = time.monotonic()
                self.memory.killed_lately(datetime.now(UTC))  # so that it knows when
                if members.others_wait():
                    (self.folder / REGROUP).touch()
        return max(codes.values(), key=_gravity)

    def _overdue(self, rank: int, dog: Watchdog, waiting: dict[int, int]) -> End | None:
        """What a worker has come to whose step takes too long; None where it is to have more time, and `waiting` has the step then."""
        if waiting.get(rank) == dog.number:
            return End.PEER_LOST if dog.late > 1 + PEER_GRACE else None
        step = (self.file.read() or Progress()).step + 1
        late, allowed = dog.waited, dog.allowed
        stacks = self._stacks(rank)
        logger.warning("process %d of this pod takes more than %.0f s for step %d; its stacks:\n%s", rank, allowed, step, stacks)
        if waits_for_peer(stacks):
            waiting[rank] = dog.number
            logger.warning("it waits for another process, and may do so for %.0f s more", PEER_GRACE * allowed)
            return None
        message = f"hung for {late:.0f} s in step {step}, which may take {allowed:.0f} s: {top(stacks) or stacks}"
        explain(self.folder, rank, "Hang", message)
        return End.HUNG

    def _stacks(self, rank: int) -> str:
        """The stacks of all threads of a worker, which may be stopped; or what its process does, where it cannot tell them."""
        path, pid = stacks_file(self.folder, rank), self.workers.pid(rank)
        state = process_state(pid) if pid else ""
        told = len(path.read_text()) if path.exists() else 0  # it was asked before, when it waited for another
        self.workers.send(rank, DUMP_SIGNAL, signal.SIGCONT)
        until, text = time.monotonic() + STACKS_SECONDS, ""
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            before, text = text, path.read_text()[told:] if path.exists() else ""
            if text and text == before:
                return f"process {pid} was in state {state}\n{text}"
        return f"process {pid} was in state {state} and does not answer; {text}"

    def _judge(self, end: int) -> None:
        """Returns when the next round may be joined.

        Raises:
            SaveRequested, TransferError, WorkerCrashError: when it may not.
        """
        reason, message = self._explanation(LOST if end == End.PEER_LOST else ERROR)
        if end in _FINAL:
            kind = getattr(transfer_api.errors, reason, TransferError)
            error: TransferError = kind(message)
            error.exit_code = ExitCode(end)
            raise error
        if self.asked_at is not None:
            raise SaveRequested("saved on request")
        if end in (ExitCode.COMPLETE, ExitCode.SAVED, End.REGROUP):
            return
        step = (self.file.read() or Progress()).step
        if end == End.PEER_LOST:
            if self._peer_losses.full(step):
                raise WorkerCrashError(f"lost the others {PEER_LOSSES} times at step {step}, the last time by {message or 'a hang'}")
            return
        what = message or (self._killed(-end) if end < 0 else f"exit code {end}")
        logger.warning("a worker crashed at step %d: %s", step, what)
        if self._crashes.full(step):
            raise WorkerCrashError(what)

    def _killed(self, number: int) -> str:
        """What to say of a worker that a signal has ended."""
        name = signal.Signals(number).name
        if number != signal.SIGKILL or not self.memory.killed_lately(datetime.now(UTC)):
            return f"killed by {name}"
        processes = self.context.processes
        advice = memory_advice(self.context, processes=self._nodes * processes, available=memory_limit() // processes, gpu=False)
        return f"killed by {name}, for want of memory: {advice}"

    def _explanation(self, kind: str) -> tuple[str, str]:
        """Reason and message that a worker left, or two empty strings."""
        for path in sorted(self.folder.glob(f"{kind}-*.json")):
            found = json.loads(path.read_text())
            return found["reason"], found["message"]
        return "", ""

    def _complete(self, done: ResultMessage) -> ResultMessage:
        """The result of this run: not reused, with its counters."""
        progress = self.file.read() or Progress()
        self._tell(Activity.DONE)
        return _message(Outcome.COMPLETE, progress, artifact=done.artifact, numbers=done.numbers)

    def _tell(self, activity: Activity) -> None:
        known = self.file.read() or Progress()
        self.file.write(known.model_copy(update={"activity": activity, "pod": self.context.pod, "stage": self.context.stage.name}))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            (self.folder / LEAVE).touch()
            if self._waiting:
                raise SaveRequested("asked to stop while waiting for the others; everything was saved before")
        elif now - self.asked_at > SECOND_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)  # the workers die with this process
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # the first process of a container does not die of its own signal


class _Row:
    """Counts what happens again and again without a finished step in between, up to `most` times."""

    def __init__(self, most: int) -> None:
        self._most, self._count, self._step = most, 0, -1

    def full(self, step: int) -> bool:
        """Whether it has now happened so often, the last time at this step."""
        self._count = self._count + 1 if step <= self._step else 1
        self._step = step
        return self._count >= self._most


def _gravity(code: int) -> int:
    """What decides when the workers of a pod ended differently: a reason to fail, then a crash, then the rest."""
    order = (ExitCode.COMPLETE, ExitCode.SAVED, End.REGROUP, End.PEER_LOST)
    if code in _FINAL:
        return len(order) + 1
    return order.index(code) if code in order else len(order)


def _message(outcome: Outcome, progress: Progress, **fields: object) -> ResultMessage:
    counters = progress.model_dump(include={"step", "tokens", "lost_steps", "productive_seconds"})
    return ResultMessage.model_validate({"outcome": outcome, **counters, **fields})

"""The worker processes of a pod, forked from one that has everything imported.

Importing torch, transformers and peft takes longer than anything else after a change of membership (6 to 16 s of a
busy core). So a nursery process imports once, while the launcher still waits for the other pods, and forks the workers of each
round in milliseconds. It has touched no GPU, and its only threads are OpenBLAS's, which sees to forks itself; so forking it is safe.
Nursery and workers die with the launcher.

    launcher → nursery   a line of JSON: the worker's environment
    nursery → launcher   a line of JSON: {"rank": …, "pid": …}, and later {"rank": …, "code": …}
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping

from transfer_pod.importing import importing
from transfer_trainer.process import DIE_WITH_PARENT, die_with_parent

_POLL_SECONDS = 0.05
_NURSERY_LOST = -int(signal.SIGKILL)


class Workers:
    """The launcher's end. `start` begins a round; `codes` says who ended how.

    Args:
        environment: of every worker; `start` adds to it.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**environment, DIE_WITH_PARENT: str(os.getpid())}
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._wanted = 0
        self._open()

    def _open(self) -> None:
        """Starts a nursery."""
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        command = [sys.executable, "-m", "transfer_trainer.workers", str(requests), str(answers)]
        self._nursery = subprocess.Popen(command, env=self._environment, pass_fds=(requests, answers), start_new_session=True)
        os.close(requests)
        os.close(answers)
        self._buffer = b""

    def start(self, environments: list[dict[str, str]]) -> None:
        """Starts a worker for each environment, which names its LOCAL_RANK."""
        if self._nursery.poll() is not None:
            self._close_pipes()
            self._open()
        self._codes, self._pids, self._wanted = {}, {}, len(environments)
        lines = "".join(json.dumps(environment) + "\n" for environment in environments)
        with contextlib.suppress(BrokenPipeError):  # then `codes` tells it
            os.write(self._requests, lines.encode())

    def codes(self) -> dict[int, int]:
        """Exit code by local rank of those that ended; negative for a signal."""
        while select.select([self._answers], [], [], 0)[0]:
            piece = os.read(self._answers, 65536)
            if not piece:
                self._nursery.wait()
                return {rank: self._codes.get(rank, _NURSERY_LOST) for rank in range(self._wanted)}
            *lines, self._buffer = (self._buffer + piece).split(b"\n")
            for line in map(json.loads, lines):
                known = self._pids if "pid" in line else self._codes
                known[line["rank"]] = line.get("pid", line.get("code"))
        return dict(self._codes)

    def pid(self, rank: int) -> int | None:
        """Process id of the worker with this local rank; None before it is forked."""
        return self._pids.get(rank)

    def send(self, rank: int, *numbers: signal.Signals) -> None:
        """Sends signals to the worker with this local rank, if it still runs."""
        if rank in self._pids and rank not in self._codes:
            for number in numbers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pids[rank], number)

    def kill(self) -> None:
        """Kills the workers that still run, and returns when they are gone."""
        while len(codes := self.codes()) < self._wanted:
            for rank, pid in self._pids.items():
                if rank not in codes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            select.select([self._answers], [], [], 1)

    def close(self) -> None:
        """Ends nursery and workers."""
        self._nursery.kill()
        self._nursery.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        os.close(self._requests)
        os.close(self._answers)


def nurse(requests: int, answers: int) -> None:
    """The nursery: imports, then forks a worker for each line until the launcher is gone."""
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):  # a signal to the pod is the launcher's to pass on
        signal.signal(number, signal.SIG_IGN)
    with importing():
        importlib.import_module("transfer_trainer.loop")
        importlib.import_module("transfer_trainer.worker")
    ranks: dict[int, int] = {}
    buffer = b""
    while True:
        if select.select([requests], [], [], _POLL_SECONDS if ranks else None)[0]:
            piece = os.read(requests, 65536)
            if not piece:
                return
            *lines, buffer = (buffer + piece).split(b"\n")
            for environment in map(json.loads, lines):
                pid = _fork(environment)
                ranks[pid] = int(environment["LOCAL_RANK"])
                _answer(answers, rank=ranks[pid], pid=pid)
        while ranks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            _answer(answers, rank=ranks.pop(pid), code=os.waitstatus_to_exitcode(status))


def _answer(answers: int, **line: int) -> None:
    os.write(answers, json.dumps(line).encode() + b"\n")


def _fork(environment: dict[str, str]) -> int:
    """Starts a worker; returns its process id here and never there."""
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        from transfer_trainer import worker

        os.environ.update(environment)
        os.environ[DIE_WITH_PARENT] = str(nursery)
        code = int(worker.main())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the threads of a broken process group can keep an orderly exit waiting for minutes


if __name__ == "__main__":
    nurse(int(sys.argv[1]), int(sys.argv[2]))

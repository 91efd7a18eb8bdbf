"""Processes that begin with everything imported: forked instead of started by `python -m`.

torch, transformers and peft take 5 to 8 s of a core to import, in every launcher and every nursery: most of what the tests of pods
would take. Forked processes are otherwise as real: sessions, signals, sockets, kills and exit codes of their own. Pods that are started
by `python -m` are in tests/local, in tests/cluster and in the demo.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

IMPORTED = ["transfer_trainer.loop", "transfer_trainer.worker", "transfer_trainer.launcher", "transfer_trainer.rendezvous"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTED)


class Process:
    """What `python -m MODULE` would be, in a session of its own; as much of subprocess.Popen as tests need.

    Args:
        module: what to run.
        environment: all of it.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        outputs = [DupFd(number) for number in (1, 2)]
        self._process = _context.Process(target=_run, args=(module, dict(environment), outputs))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, once there is one.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process.name), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class _Forked:
    """A nursery that a launcher forks: stands in for subprocess.Popen there."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int], **_: Any) -> None:
        module, *arguments = command[2:]
        self.pid = os.fork()
        self.returncode: int | None = None
        if self.pid == 0:
            # Not closed: what owns a number in the launcher's memory would close whatever has that number here.
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - {0, 1, 2, nothing, *pass_fds}:
                os.dup2(nothing, number)
            _enter(module, arguments, env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _run(module: str, environment: Mapping[str, str], outputs: Sequence[Any]) -> None:
    """First code of a process that the fork server made."""
    from transfer_trainer import workers

    for number, output in enumerate(outputs, 1):
        os.dup2(output.detach(), number)
    workers.subprocess = _Nurseries  # type: ignore[attr-defined]
    _enter(module, [], environment)


class _Nurseries:
    """Stands in for the module subprocess in a forked launcher."""

    Popen = _Forked


def _enter(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Becomes what `python -m` would have begun; never returns."""
    code: Any = 1
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

"""Processes that begin with everything imported: forked instead of started by `python -m`.

torch, transformers and peft take 5 to 10 s of a core to import, in every pod and again in every nursery: most of what the tests of pods
would take. Forked processes are otherwise as real: sessions, signals, sockets, kills, pipes and exit codes of their own. Processes that
are started by `python -m` are in some tests of tests/local, in tests/cluster and in the demo.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
NAME_LENGTH = 15


@functools.cache
def _context() -> Any:
    """The fork server, once a test process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.imported"])
    return context


class Process:
    """What `python -m MODULE` would be, in a session of its own; as much of subprocess.Popen as tests need.

    Its name, as psutil and ps show it, is the end of the module's.

    Args:
        module: what to run.
        environment: all of it.
        arguments: of its command line.
        folder: in which it runs; this one if None.
        output: file that stdout and stderr are appended to; those of this process if None.
    """

    def __init__(
        self,
        module: str,
        environment: Mapping[str, str],
        arguments: Sequence[str] = (),
        *,
        folder: Path | None = None,
        output: Path | None = None,
    ) -> None:
        self.output = output
        with contextlib.ExitStack() as open_files:
            streams = [1, 2] if output is None else [open_files.enter_context(output.open("ab")).fileno()] * 2
            told = (module, list(arguments), dict(environment), folder or Path.cwd(), [DupFd(stream) for stream in streams])
            self._process = _context().Process(target=_run, args=told)
            self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode  # type: ignore[no-any-return]

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, once there is one.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired(str(self._process.name), timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it wrote, once it has ended."""
        self.wait(timeout)
        return self.said, None

    @property
    def said(self) -> str:
        """What is in its output."""
        return self.output.read_text() if self.output is not None else ""

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Forked:
    """What a forked process forks in its turn: stands in for subprocess.Popen of `python … -m MODULE …` there."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = (), stdout: Any = None, **_: Any) -> None:
        place = list(command).index("-m")
        module, arguments = command[place + 1], command[place + 2 :]
        leashed = "-c" in command[:place]  # transfer_cli.local: dies with its parent
        parent = os.getpid()
        self.pid = os.fork()
        self.returncode: int | None = None
        if self.pid == 0:
            if leashed:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)
            if stdout is not None:
                for number in (1, 2):
                    os.dup2(stdout.fileno(), number)
            # Not closed: what owns a number in the parent's memory would close whatever has that number here.
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - {1, 2, nothing, *pass_fds}:
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

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, outputs: Sequence[Any]) -> None:
    """First code of a process that the fork server made."""
    for number, output in enumerate(outputs, 1):
        os.dup2(output.detach(), number)
    os.chdir(folder)
    _enter(module, arguments, environment)


def _enter(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Becomes what `python -m` would have begun; never returns."""
    from transfer_cli import local
    from transfer_trainer import workers

    code: Any = 1
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        ctypes.CDLL(None).prctl(PR_SET_NAME, module[-NAME_LENGTH:].encode())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for starts in (local, workers):
            starts.subprocess = SimpleNamespace(Popen=_Forked, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
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

"""Hangs: a worker that takes far longer for a step than its steps took before.

    allowed = max(FLOOR_SECONDS, FACTOR × the longest of the last WINDOW steps of the round)

A step that was not done by then never will be: the launcher has the worker write the stacks of all its threads, and kills it. That also
works for a process that the kernel has stopped, or that holds Python's lock in C code, where a thread of its own could do nothing.

All workers of a step wait for the one that hangs, and exceed their time with it. Whose stack is in a collective gets half of that
time more: the launcher of the other one is first then, and its death ends the collective. So this is also the time-out of the
collectives of a step; torch's own (parallel.py) is for what is not a step. Loading, saving and measuring may take what they take,
as may the first step of a round, in which kernels are compiled; spec.deadlines.stallSeconds sees to them.

    pulse-<rank>          number of the last step begun, and seconds that it may take; written by the worker, read by the launcher
    stacks-<rank>.txt     what faulthandler writes at SIGUSR2
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import math
import re
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FLOOR = "TRANSFER_HANG_FLOOR"
"""Environment variable: replaces FLOOR_SECONDS."""
FLOOR_SECONDS = 60.0
FACTOR, WINDOW = 5.0, 20
DUMP_SIGNAL = signal.SIGUSR2
_LOOK_SECONDS = 1.0
_PULSE = struct.Struct("<qd")
_COLLECTIVES = ("/torch/distributed/", "/transfer_trainer/replicas.py")  # the latter waits in C++, with no frame of torch's above it
_INNERMOST = 3  # frames of a thread that tell whether it waits: deeper ones are in every stack


def pulse_file(folder: Path, rank: int) -> Path:
    """Of the worker with this local rank."""
    return folder / f"pulse-{rank}"


def stacks_file(folder: Path, rank: int) -> Path:
    """Of the worker with this local rank."""
    return folder / f"stacks-{rank}.txt"


def allowed_seconds(steps: collections.deque[float], floor: float) -> float:
    """The formula above; infinite before the first step."""
    return max(floor, FACTOR * max(steps)) if steps else math.inf


class Pulse:
    """The worker's end.

    Args:
        path: where to write; None where nobody watches.
        floor: shortest time that a step is given, in seconds.
        clock: monotonic seconds.
    """

    def __init__(self, path: Path | None = None, floor: float = FLOOR_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = path.open("wb", buffering=0) if path is not None else None
        self._floor, self._clock = floor, clock
        self._steps: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self._number = 0
        self._begun: float | None = None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Has what is done inside watched, and measured for the steps to come."""
        self._number += 1
        self._begun = self._clock()
        self._write(allowed_seconds(self._steps, self._floor))
        yield
        if self._begun is not None:
            self._steps.append(self._clock() - self._begun)
            self.rest()

    def rest(self) -> None:
        """From here on the current step is neither watched nor measured."""
        self._begun = None
        self._write(math.inf)

    def _write(self, allowed: float) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.write(_PULSE.pack(self._number, allowed))


class Watchdog:
    """The launcher's end, for one worker."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.number = 0
        """Of the step in its round."""
        self._allowed = math.inf
        self._looked: float | None = None
        self.waited = 0.0
        """Seconds that the step has taken, as far as this process has seen it."""

    @property
    def late(self) -> float:
        """The step's time over the time that it may take."""
        return self.waited / self._allowed

    @property
    def allowed(self) -> float:
        """Seconds that the step may take."""
        return self._allowed

    def look(self, now: float) -> bool:
        """Whether the step takes longer than it may; `now` in monotonic seconds, to be asked several times a second.

        A longer gap between two looks counts as one second: then this process stood still as well, such as with its container.
        """
        seen = self._read()
        gap = 0.0 if self._looked is None else min(now - self._looked, _LOOK_SECONDS)
        self._looked = now
        self.waited = self.waited + gap if seen == (self.number, self._allowed) else 0.0
        self.number, self._allowed = seen
        return self.waited > self._allowed

    def _read(self) -> tuple[int, float]:
        try:
            number, allowed = _PULSE.unpack(self._path.read_bytes())
        except (FileNotFoundError, struct.error):
            return self.number, math.inf
        return int(number), float(allowed)


def dump_when_asked(path: Path) -> None:
    """Has the signal write the stacks of all threads of this process into a file, and a fault of the machine into the log."""
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL, file=path.open("w"), all_threads=True)


def waits_for_peer(stacks: str) -> bool:
    """Whether one of the threads is in a collective, by what faulthandler wrote of them."""
    innermost = ["".join(frames[:_INNERMOST]) for frames in _threads(stacks)]
    return any(place in frames for frames in innermost for place in _COLLECTIVES)


def top(stacks: str, frames: int = 6) -> str:
    """The innermost calls of the thread that trains, in one line; empty where there is none."""
    threads = _threads(stacks)
    trains = next((thread for thread in threads if any("transfer_trainer/loop.py" in frame for frame in thread)), None)
    chosen = trains or (threads[-1] if threads else [])
    return " < ".join(re.sub(r'File ".*?([^/"]*)", line (\d+) in (\S+)', r"\3 (\1:\2)", frame) for frame in chosen[:frames])


def _threads(stacks: str) -> list[list[str]]:
    """The frames of each thread, the innermost first."""
    threads: list[list[str]] = []
    for line in stacks.splitlines():
        if "(most recent call first)" in line:
            threads.append([])
        elif threads and line.startswith("  File "):
            threads[-1].append(line.strip())
    return threads


def process_state(pid: int) -> str:
    """What the kernel says that a process does, such as `D (disk sleep)`; empty when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.removeprefix("State:").strip()
    return ""

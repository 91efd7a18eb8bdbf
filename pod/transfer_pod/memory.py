"""Whether it was the kernel, out of memory, that killed a process of ours; and how much memory there is.

SIGKILL looks the same whoever sends it. The kernel counts what it kills for want of memory, for each control group and for
the whole machine; a count that has just risen is the evidence, and without it nothing is claimed.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from pathlib import Path

LATELY = timedelta(seconds=10)
"""A worker that was killed takes its launcher with it within this time, after the last of its tries."""


class OutOfMemory:
    """Watches that count for the control group of this process, or where that has none for the machine."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._seen = self._count()
        self._rose: datetime | None = None

    def killed_lately(self, now: datetime) -> bool:
        """Whether the count rose within the last seconds; to be asked at every look at the pods."""
        count = self._count()
        if count > self._seen:
            self._seen, self._rose = count, now
        return self._rose is not None and now - self._rose < LATELY

    def _count(self) -> int:
        for file in (*self._of_group(), self._root / "proc/vmstat"):
            with contextlib.suppress(OSError, ValueError):
                found = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
                if "oom_kill" in found:
                    return int(found["oom_kill"])
        return 0

    def _of_group(self) -> list[Path]:
        """Of its group: memory.events of cgroup v2, memory.oom_control of v1."""
        return _files_of_group(self._root, "memory.events", "memory.oom_control")


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes that the processes of this control group may have together, or the machine has; 0 where neither is known."""
    found = []
    for file in _files_of_group(root, "memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(file.read_text()))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemTotal:"))))
    return min(found, default=0)


def _files_of_group(root: Path, second: str, first: str) -> list[Path]:
    """A file of its group in cgroup v2 or v1, below the mount or (in a container) at it."""
    mount, files = root / "sys/fs/cgroup", []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            base, name = (mount, second) if not controllers else (mount / "memory", first)
            if not controllers or "memory" in controllers.split(","):
                files += [base / group.lstrip("/") / name, base / name]
    return files

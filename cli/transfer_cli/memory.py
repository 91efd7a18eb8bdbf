"""Whether it was the kernel, out of memory, that killed a process of ours.

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
        """Files of its group: memory.events of cgroup v2, memory.oom_control of v1, below the mount or (in a container) at it."""
        mount, files = self._root / "sys/fs/cgroup", []
        with contextlib.suppress(OSError):
            for line in (self._root / "proc/self/cgroup").read_text().splitlines():
                _, controllers, group = line.split(":", 2)
                base, name = (mount, "memory.events") if not controllers else (mount / "memory", "memory.oom_control")
                if not controllers or "memory" in controllers.split(","):
                    files += [base / group.lstrip("/") / name, base / name]
        return files

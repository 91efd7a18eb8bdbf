"""A kill for want of memory is told from any other by the kernel's own count, and only by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from transfer_pod.memory import LATELY, OutOfMemory, memory_limit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOOK = timedelta(seconds=0.25)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


CASES = [
    pytest.param("0::/user/run\n", "sys/fs/cgroup/user/run/memory.events", id="cgroup v2"),
    pytest.param("0::/\n", "sys/fs/cgroup/memory.events", id="cgroup v2 in a container"),
    pytest.param("5:memory:/run\n0::/\n", "sys/fs/cgroup/memory/run/memory.oom_control", id="cgroup v1"),
    pytest.param("5:cpu,memory:/docker/x\n", "sys/fs/cgroup/memory/memory.oom_control", id="cgroup v1 in a container"),
    pytest.param("0::/gone\n", "proc/vmstat", id="machine"),
]


@pytest.mark.parametrize(("groups", "file"), CASES)
def test_a_count_that_rises_is_evidence_for_a_while(tmp_path: Path, groups: str, file: str) -> None:
    write(tmp_path, "proc/self/cgroup", groups)
    write(tmp_path, "proc/vmstat", "nr_free_pages 7\noom_kill 1\n")
    write(tmp_path, file, "low 0\noom 9\noom_kill 3\n")
    memory = OutOfMemory(tmp_path)
    assert not memory.killed_lately(NOW), "kills before the run say nothing"
    write(tmp_path, file, "low 0\noom 9\noom_kill 4\n")
    assert memory.killed_lately(NOW + LOOK)
    assert memory.killed_lately(NOW + 2 * LOOK)
    assert not memory.killed_lately(NOW + LOOK + LATELY)


def test_kills_elsewhere_on_the_machine_are_no_evidence(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.events", "oom_kill 0\n")
    write(tmp_path, "proc/vmstat", "oom_kill 0\n")
    memory = OutOfMemory(tmp_path)
    write(tmp_path, "proc/vmstat", "oom_kill 5\n")
    assert not memory.killed_lately(NOW)


def test_a_machine_that_does_not_count_claims_nothing(tmp_path: Path) -> None:
    assert not OutOfMemory(tmp_path).killed_lately(NOW)


@pytest.mark.parametrize(
    ("groups", "file", "text", "expected"),
    [
        pytest.param("0::/run\n", "sys/fs/cgroup/run/memory.max", "4096\n", 4096, id="cgroup v2"),
        pytest.param("0::/run\n", "sys/fs/cgroup/run/memory.max", "max\n", 8 * 1024, id="a group without a limit"),
        pytest.param("5:memory:/run\n", "sys/fs/cgroup/memory/run/memory.limit_in_bytes", "5000\n", 5000, id="cgroup v1"),
        pytest.param("5:memory:/run\n", "sys/fs/cgroup/memory/memory.limit_in_bytes", str(2**63), 8 * 1024, id="more than there is"),
    ],
)
def test_the_limit_is_that_of_the_group_or_of_the_machine(tmp_path: Path, groups: str, file: str, text: str, expected: int) -> None:
    write(tmp_path, "proc/self/cgroup", groups)
    write(tmp_path, "proc/meminfo", "MemTotal:              8 kB\nMemFree: 1 kB\n")
    write(tmp_path, file, text)
    assert memory_limit(tmp_path) == expected


def test_without_any_word_the_limit_is_unknown(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) == 0

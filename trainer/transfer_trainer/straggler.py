"""Stragglers: processes that compute longer than the others, for whom all of them wait.

The time of a step is the same for all: they meet in its collectives, several times in each layer. So what is timed here is what a
process does between them: reading its rows, and the forward pass of its decoder layers from the moment when their weights are
gathered. The backward pass does the same work twice and mixes it with collectives; it is left out.

    ratio = time for a row, mean of WINDOW_STEPS steps / median of that over the processes

The lower median, so that of two processes the slower one is measured by the faster.
"""

from __future__ import annotations

import collections
import logging
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

WINDOW_STEPS = 20
FACTOR = 1.5
"""A process that takes so many times the median is called a straggler."""


class ComputeTimer:
    """Times the forward pass of modules that take turns, such as the layers of a decoder.

    Call it after sharding: its hooks are to run after FSDP2 has gathered the weights, and before it lets them go.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._begun: Any = None
        self._seconds = 0.0
        self._events: collections.deque[tuple[Any, Any]] = collections.deque()
        for module in modules:
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end, prepend=True)

    def take(self) -> float:
        """Seconds since the last call of this."""
        while self._events:
            begin, end = self._events.popleft()
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _begin(self, module: nn.Module, inputs: object) -> None:
        self._begun = self._now()

    def _end(self, module: nn.Module, inputs: object, output: object) -> None:
        if self._cuda:
            self._events.append((self._begun, self._now()))
        else:
            self._seconds += self._now() - self._begun

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@dataclass
class Computed:
    """What one process computed since it was last asked."""

    seconds: float = 0.0
    rows: int = 0

    def add(self, seconds: float, rows: int) -> None:
        """Adds a step."""
        self.seconds += seconds
        self.rows += rows

    def take(self) -> float:
        """Seconds for a row; then counts anew."""
        seconds, rows = self.seconds, self.rows
        self.seconds, self.rows = 0.0, 0
        return seconds / max(1, rows)


class Stragglers:
    """Who computes longer than the others, as one process of the round tells it.

    Args:
        own: the ranks of this pod.
        tells_all: whether it is the process that tells of every rank.
    """

    def __init__(self, own: range, *, tells_all: bool) -> None:
        self.own, self.tells_all = own, tells_all
        self._slow: set[int] = set()

    def judge(self, times: list[float]) -> float:
        """Logs who has become a straggler and who is none any more; returns the largest ratio of the pod.

        Args:
            times: seconds for a row, by rank.
        """
        found = ratios(times)
        slow = {rank for rank, ratio in enumerate(found) if ratio > FACTOR}
        for rank in sorted(slow ^ self._slow):
            if self.tells_all or rank in self.own:
                what = "computes" if rank in slow else "is no straggler any more: it computes"
                logger.warning(
                    "process %d %s %.2f times as long as the median of all %d, over %d steps",
                    rank,
                    what,
                    found[rank],
                    len(found),
                    WINDOW_STEPS,
                )
        self._slow = slow
        return max(found[rank] for rank in self.own)


def ratios(times: list[float]) -> list[float]:
    """Each time over the lower median of all; 1 where there is nothing to compare."""
    median = statistics.median_low(times)
    return [value / median if median > 0 else 1.0 for value in times]

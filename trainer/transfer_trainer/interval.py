"""When a training stage saves: every so many steps, or as often as loses the least time.

A save costs training some seconds δ, and a failure costs what was trained since the last one. Between two failures that are M
seconds apart on average, the least is lost with an interval of about √(2δM): Young, "A first order approximation to the optimum
checkpoint interval", CACM 17(9), 1974; here with the higher terms of Daly, "A higher order estimate of the optimum checkpoint
interval for restart dumps", FGCS 22(3), 2006, equation 37.

    δ   measured: how much longer the steps beside a save took than the others, all standing still included; mean of the last saves
    M   (prior + time trained) / (1 + failures) of this run: a run that has not failed yet counts for one that fails every
        PRIOR_SECONDS, and what is seen soon outweighs that. A failure is what cost steps; who is asked to leave saves first
"""

from __future__ import annotations

import collections
import math
import statistics
import time
from collections.abc import Callable
from typing import Protocol

PRIOR_SECONDS = 4 * 3600.0
"""Mean time between failures of the whole group before one was seen."""
FLOOR_SECONDS, CEILING_SECONDS = 10.0, 1800.0
"""No interval is shorter or longer. It begins at the floor, for what a save costs is known only after the first."""
SAVES_APART = 2.0
"""The interval is at least so many times as long as a save takes, so that one is over before the next begins."""
_SAVES, _LAPS = 5, 50


def daly(cost: float, mtbf: float) -> float:
    """Seconds of training between two saves that lose the least time.

    Args:
        cost: seconds that a save takes from training.
        mtbf: mean seconds between two failures.
    """
    if cost >= 2 * mtbf:
        return mtbf
    ratio = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


class Interval(Protocol):
    """When to save."""

    @property
    def seconds(self) -> float | None:
        """Between two saves, where the interval is one of time."""

    def due(self, step: int) -> bool:
        """Whether to save after step `step`, which begins now; called once in each step."""

    def begun(self) -> None:
        """Called when a save begins."""

    def saved(self, seconds: float, stall: float) -> None:
        """Called when a save is complete, with how long it took and how long training stood still for it."""


class EverySteps:
    """Saves after every `steps` steps."""

    seconds = None

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def due(self, step: int) -> bool:
        """Whether the step is one of them."""
        return step % self._steps == 0

    def begun(self) -> None:
        """Changes nothing."""

    def saved(self, seconds: float, stall: float) -> None:
        """Changes nothing."""


class Auto:
    """Saves at the interval that loses the least time.

    Args:
        failures: of this run so far.
        trained: seconds that it has trained so far.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, failures: int, trained: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = FLOOR_SECONDS
        self._failures, self._trained, self._clock = failures, trained, clock
        self._start = self._last = self._lap = clock()
        self._saving = False
        self._usual: collections.deque[float] = collections.deque(maxlen=_LAPS)
        self._beside: list[float] = []
        self._costs: collections.deque[float] = collections.deque(maxlen=_SAVES)

    @property
    def mtbf(self) -> float:
        """Mean seconds between two failures, as far as is known."""
        return (PRIOR_SECONDS + self._trained + self._clock() - self._start) / (1 + self._failures)

    def due(self, step: int) -> bool:
        """Whether the interval has passed and no save runs; takes the time of the steps."""
        now = self._clock()
        (self._beside if self._saving else self._usual).append(now - self._lap)
        self._lap = now
        return not self._saving and now - self._last >= self.seconds

    def begun(self) -> None:
        """The interval counts from here; the steps that follow are beside the save."""
        self._last, self._saving, self._beside = self._clock(), True, []

    def saved(self, seconds: float, stall: float) -> None:
        """Chooses the interval anew."""
        self._saving = False
        usual = statistics.median(self._usual) if self._usual else math.inf
        slower = sum(max(0.0, lap - usual) for lap in self._beside)
        self._costs.append(min(max(slower, stall), seconds))  # a step with a measurement in it is no cost of the save
        wanted = daly(statistics.mean(self._costs), self.mtbf)
        self.seconds = min(CEILING_SECONDS, max(FLOOR_SECONDS, SAVES_APART * seconds, wanted))

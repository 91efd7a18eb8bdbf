"""How far the clocks of the workers are apart.

Nothing in training depends on it: steps count, time does not. But whoever reads logs, ledgers and metrics of several nodes
side by side should know. It is measured at the start of a round: a process reads its clock, then all meet, then rank 0
reads its own and tells it, then the process reads its clock again. So the moment of rank 0 lies between the two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from transfer_trainer.parallel import Team

logger = logging.getLogger(__name__)

BOUND_SECONDS = 1.0
"""A larger difference is logged."""


@dataclass(frozen=True)
class Offset:
    """How far a clock is ahead of rank 0's, in seconds, and how far off that may be."""

    seconds: float
    uncertainty: float

    @classmethod
    def between(cls, before: float, told: float, after: float) -> Offset:
        """From two readings of the own clock and that of rank 0 in between."""
        return cls((before + after) / 2 - told, (after - before) / 2)

    @property
    def large(self) -> bool:
        """Whether it is above the bound, whatever it is exactly."""
        return abs(self.seconds) - self.uncertainty > BOUND_SECONDS


def compare_clocks(team: Team, clock: Callable[[], float] = time.time) -> list[Offset]:
    """The offsets by rank; all processes take part. Rank 0 logs those that are large, and each pod its own."""
    team.wait()
    before = clock()
    team.wait()
    told = team.tell(int(clock() * 1e6))[0] / 1e6
    own = Offset.between(before, told, clock()) if team.rank else Offset(0.0, 0.0)
    offsets = [Offset(*pair) for pair in zip(team.gather(own.seconds), team.gather(own.uncertainty), strict=True)]
    for rank, offset in enumerate(offsets):
        if offset.large and team.rank in (0, rank):
            logger.warning(
                "the clock of process %d is %.2f s %s that of process 0 (±%.2f s); training does not depend on it, times in logs do",
                rank, abs(offset.seconds), "ahead of" if offset.seconds > 0 else "behind", offset.uncertainty,
            )  # fmt: skip
    return offsets

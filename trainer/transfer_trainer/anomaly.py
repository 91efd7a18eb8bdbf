"""Anomalous steps: those whose loss or gradient norm is not a finite number, and those whose loss is a spike.

    spike     loss > spikeFactor × median of the last `window` losses of steps that were not anomalous; with fewer such steps, none is

A step is judged after its gradients and before its update, by numbers that the processes have already added up: all of them have the
same bits, so all come to one verdict without asking each other. What was decided is in the ledger (ledger.py) and holds from
then on. A resumed run takes the losses of its window and the decisions from there; so it decides as if nothing had happened,
although its losses may differ in the last digits where the number of processes does.

Rolling back and skipping end with the same weights where the processor and memory did what they should: the steps done again
are the same steps. It is for the case that they did not.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from transfer_api.errors import SpecError
from transfer_api.spec import Anomalies, AnomalyAction


@dataclass(frozen=True)
class Anomaly:
    """One anomalous step, counted from 1. `median` is that of the window, None while it is not full."""

    step: int
    loss: float
    gradient_norm: float
    median: float | None

    @property
    def finite(self) -> bool:
        """Whether it is a spike rather than no number."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    @property
    def numbers(self) -> dict[str, float | None]:
        """What it was judged by."""
        return {"loss": self.loss, "gradient_norm": self.gradient_norm, "median": self.median}

    def __str__(self) -> str:
        if not self.finite:
            return f"step {self.step} has loss {self.loss:.6g} and gradient norm {self.gradient_norm:.6g}"
        return f"step {self.step} has loss {self.loss:.6g}, a spike over the median {self.median:.6g} of the steps before"


class AnomalyWatch:
    """Judges the steps of a run in their order.

    Args:
        policy: what the experiment asks for; None stops where a step is not finite.
        losses: nats per token of the finished steps, the newest last; those before the window are not needed.
        decided: steps of which the ledger says that they are to be skipped.
    """

    def __init__(self, policy: Anomalies | None, losses: Iterable[float] = (), decided: Collection[int] = ()) -> None:
        self.policy = policy or Anomalies()
        self.decided = set(decided)
        self._losses = collections.deque(losses, maxlen=self.policy.window)

    @property
    def median(self) -> float | None:
        """Of the window; None while it is not full."""
        return statistics.median(self._losses) if len(self._losses) == self.policy.window else None

    def judge(self, step: int, loss: float, gradient_norm: float) -> Anomaly | None:
        """Whether a step that would be finished next, and was not decided on before, is anomalous; None when it is not."""
        found = Anomaly(step, loss, gradient_norm, self.median)
        return found if not found.finite or is_spike(self.policy, loss, found.median) else None

    def accept(self, loss: float) -> None:
        """Takes the loss of a finished step into the window."""
        self._losses.append(loss)

    def pass_by(self, anomaly: Anomaly, section: str, learning_rate: str) -> AnomalyAction:
        """Notes that the step is to be skipped, and says how: `SKIP` or `ROLL_BACK`.

        Args:
            anomaly: what `judge` found.
            section: of the experiment file, for the message.
            learning_rate: likewise.

        Raises:
            SpecError: the policy is to stop, or has let as many pass as it may.
        """
        policy = self.policy
        if policy.action is AnomalyAction.STOP:
            raise _stop(anomaly, policy, section, learning_rate)
        if len(self.decided) >= policy.limit:
            raise SpecError(
                f"more steps are anomalous than may be left out: {anomaly}", field=f"{section}.anomalies.limit", value=policy.limit,
                next_step="Lower learningRate, lengthen warmup, look at the rows that the ledger calls skipped, or raise limit",
            )  # fmt: skip
        self.decided.add(anomaly.step)
        return policy.action


def is_spike(policy: Anomalies, loss: float, median: float | None) -> bool:
    """The rule above."""
    return policy.spike_factor is not None and median is not None and loss > float(policy.spike_factor) * median


def _stop(anomaly: Anomaly, policy: Anomalies, section: str, learning_rate: str) -> SpecError:
    if not anomaly.finite:
        return SpecError(
            f"the loss is no longer a number at step {anomaly.step} (loss {anomaly.loss:.6g}, gradient norm {anomaly.gradient_norm:.6g})",
            field=f"{section}.learningRate", value=learning_rate,
            next_step="Lower it, lengthen warmup, set gradientClipping, or have such steps left out with anomalies.action: Skip",
        )  # fmt: skip
    return SpecError(
        f"{anomaly}", field=f"{section}.anomalies.spikeFactor", value=policy.spike_factor,
        next_step="Lower learningRate, lengthen warmup, raise spikeFactor, or have such steps left out with action: Skip",
    )  # fmt: skip

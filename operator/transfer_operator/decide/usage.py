"""What training costs: time, GPUs, and how much of it went into steps that count.

Nobody writes down each second; what ran between two status writes is taken to be what the first of them saw.
"""

from __future__ import annotations

from datetime import datetime

from transfer_api.gpu import is_gpu
from transfer_api.stage import StageKind
from transfer_api.status import StageStatus, UsageStatus
from transfer_operator.decide.snapshot import Snapshot


def measure(snapshot: Snapshot, stages: list[StageStatus], ready: int, kind: StageKind | None, moved: bool, now: datetime) -> UsageStatus:
    """The usage so far. Moves on with the step of progress in the status, so that looking is not writing.

    Args:
        snapshot: what is seen; its status holds the sums so far.
        stages: records as they are to be written.
        ready: pods of the current stage that run now.
        kind: of the current stage; None when none runs.
        moved: whether the status tells of new progress; between two such times nothing is added.
        now: the time.
    """
    old = snapshot.status.usage
    training = kind is not None and kind.elastic and ready > 0
    passed = int((now - old.measured).total_seconds()) if old.measured is not None else 0
    due = old.measured is not None and (not training or moved)
    running = old.running_seconds + (passed if due else 0)
    productive = sum(stage.productive_seconds for stage in stages if stage.kind.elastic)
    return UsageStatus(
        running_seconds=running,
        productive_seconds=productive,
        lost_seconds=max(0, running - productive),
        goodput_percent=min(100, 100 * productive // running) if running else None,
        gpu_seconds=old.gpu_seconds + (passed * snapshot.status.workers.ready * _gpus(snapshot) if due else 0),
        lost_steps=sum(stage.lost_steps for stage in stages if stage.kind.elastic),
        measured=(now if due or old.measured is None else old.measured) if training else None,
    )


def _gpus(snapshot: Snapshot) -> int:
    """GPUs of one worker."""
    limits = snapshot.experiment.spec.workers.resources.limits
    return sum(int(str(amount)) for name, amount in limits.items() if is_gpu(name) and str(amount).isdigit())

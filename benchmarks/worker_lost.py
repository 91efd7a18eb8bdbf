"""Time from the death of a pod to the next new step of the others, tiny model, real processes on loopback.

    .venv/bin/python -m benchmarks.worker_lost

The pod is killed with -9, launcher and all, so that nobody says goodbye: the others find its sockets closed, wait until the rendezvous has
forgotten it, and go on from the last checkpoint. A step is new when none of its number was done before.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from tests.support.experiment import wait_for
from tests.support.pods import Cluster, cluster, make_storage, steps_at, training_stage

RUNS = 4
STEPS = 100_000
"""More than a measurement lasts."""


def lose(group: Cluster, index: int) -> float:
    """Kills the pod that has this place, and returns seconds until the other has done a new step."""
    wait_for(steps_at(group, 2), what="both train")
    victim, done = group.pods[index], group.ledger.steps
    began = time.monotonic()
    victim.kill()
    wait_for(lambda: group.ledger.steps > done + 1, what="the other does new steps")
    return time.monotonic() - began


def arguments() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the pods end too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = []
    for run in range(RUNS):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with cluster(folder, training_stage("a" * 32, make_storage(folder), steps=STEPS), max_nodes=2) as group:
                group.start(0)
                group.start(1)
                found.append(lose(group, run % 2))
        print(f"worker {run % 2} is lost: {found[-1]:.1f} s to a new step", flush=True)
    return {"worker_lost": statistics.median(found)}, {"worker_lost": f"{min(found):.1f} to {max(found):.1f} s; either of two pods"}


if __name__ == "__main__":
    sys.exit(report("trainer", *measure(arguments().parse_args())))

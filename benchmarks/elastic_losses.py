"""Losses over 2 → 3 → 1 → 2 workers against one steady worker, float32, full training and LoRA.

    .venv/bin/python benchmarks/elastic_losses.py [--steps 60]

Real processes on loopback with a tiny model: workers join, and one is killed with -9 beside the one that holds rank 0.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from tests.support.pods import ORDER, ROWS_PER_STEP, Cluster, cluster, losses, make_storage, resize, steady_losses, training_stage
from transfer_trainer.ledger import verify_ledger


def difference(group: Cluster, folder: Path, steps: int) -> float:
    """Largest relative difference of a step's loss, once the ledger is proved."""
    summary = verify_ledger(group.artifact / "ledger.jsonl", ORDER, ROWS_PER_STEP, steps)
    sizes = [line.world_size for line in summary.lines]
    changes = [sizes[0], *(now for before, now in itertools.pairwise(sizes) if now != before)]
    largest = max(abs(here / steady - 1) for here, steady in zip(losses(summary), steady_losses(folder, group.stage), strict=True))
    print(f"workers {' → '.join(map(str, changes))}: largest difference {largest:.2e}, {summary.lost_steps} steps done twice", flush=True)
    return largest


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    return parser


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    steps = wanted.steps
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the pods end too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = []
    for lora in (False, True):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with cluster(folder, training_stage("a" * 32, make_storage(folder), steps=steps, lora=lora), max_nodes=3) as group:
                resize(group)
                found.append(difference(group, folder, steps))
    return {"elastic_loss_difference": max(found)}, {}


if __name__ == "__main__":
    sys.exit(report("trainer", *measure(arguments().parse_args())))

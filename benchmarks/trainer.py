"""All figures of the trainer in one table (`make bench-trainer`); exit code 1 where a bar is missed.

    .venv/bin/python -m benchmarks.trainer [--only NAME …]

About a quarter of an hour on two cores with nothing beside it. Each part can be run alone too; see the files of these names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import (
    elastic_losses,
    instructions_vs_trl,
    tokenising,
    trainer_memory,
    trainer_replicas,
    trainer_scaling,
    trainer_vs_hf,
    worker_lost,
)
from benchmarks.bars import report

PARTS = {
    "speed": trainer_vs_hf,
    "instructions": instructions_vs_trl,
    "memory": trainer_memory,
    "scaling": trainer_scaling,
    "replicas": trainer_replicas,
    "elastic": elastic_losses,
    "lost": worker_lost,
    "tokenising": tokenising,  # the last one: it sets the threads of this process
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PARTS), nargs="+", default=list(PARTS))
    figures: dict[str, float] = {}
    notes: dict[str, str] = {}
    for name in parser.parse_args().only:
        print(f"\n{name}", flush=True)
        found, said = PARTS[name].measure(PARTS[name].arguments().parse_args([]))
        figures |= found
        notes |= said
    return report("trainer", figures, notes)


if __name__ == "__main__":
    sys.exit(main())

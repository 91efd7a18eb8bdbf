"""Fails where fewer branches were taken than wanted: `--cov-fail-under` counts lines and branches together, which hides branches.

python -m tests.branches REPORT.json PERCENT
"""

import json
import sys
from pathlib import Path


def main(report: Path, percent: float) -> int:
    """1 where fewer than `percent` of the branches in a JSON report of coverage were taken."""
    totals = json.loads(report.read_text())["totals"]
    taken = 100 * totals["covered_branches"] / totals["num_branches"]
    print(f"branches: {totals['covered_branches']:,} of {totals['num_branches']:,} taken, {taken:.1f} % (at least {percent:g} %)")
    return int(taken < percent)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))

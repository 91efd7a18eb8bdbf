"""`kubectl get txp NAME -o json | python -m hack.cluster.table`: prints what its status tells, and its scores as a table."""

from __future__ import annotations

import json
import sys

from rich.console import Console

from transfer_api.progress import Score
from transfer_api.status import ExperimentStatus, ScoreStatus
from transfer_cli.display import score_table
from transfer_cli.status import describe
from transfer_evaluator.table import verdict


def main() -> int:
    """Reads the object from standard input."""
    body = json.load(sys.stdin)
    status = ExperimentStatus.model_validate(body.get("status") or {})
    scores = [_score(line) for line in status.results.scores] if status.results is not None else []
    print(describe(status.model_copy(update={"results": None})))
    if scores:
        # Scores that did not fit into the status are in results.json of the artifact.
        Console(width=None if sys.stdout.isatty() else 140).print(score_table(scores))
        print(verdict(scores, body["spec"]["language"]))
    return 0


def _score(line: ScoreStatus) -> Score:
    numbers = {name: float(text) for name in ("value", "baseline", "difference") if (text := getattr(line, name)) is not None}
    interval = (float(line.interval[0]), float(line.interval[1])) if len(line.interval) == 2 else None
    names = {name: getattr(line, name) for name in ("suite", "task", "language", "metric", "higher_is_better", "items")}
    return Score.model_validate({**names, **numbers, "interval": interval})


if __name__ == "__main__":
    sys.exit(main())

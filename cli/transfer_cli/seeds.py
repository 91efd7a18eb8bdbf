"""`transfer seeds`: several runs of one file that differ in their seed, as one table."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from transfer_api.errors import ArtifactError, ExitCode, SpecError
from transfer_api.results import RESULTS, Results
from transfer_cli.display import open_console
from transfer_cli.outputs import NAMES, STAMP
from transfer_cli.status import output_of
from transfer_pod.artifact import storage_errors, write_atomically

if TYPE_CHECKING:
    from rich.table import Table

    from transfer_evaluator.seeds import CombinedScore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name, file or folder of a finished run; two or more with different seeds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")


def run(options: argparse.Namespace) -> int:
    """Prints the table. Exit codes: 0, 2 where the runs do not belong together, 11 where one is damaged."""
    from transfer_evaluator.seeds import combine_runs

    scores = combine_runs([_read(name) for name in options.runs])
    if options.json is not None and options.json.name in NAMES and (options.json.parent / STAMP).exists():
        raise SpecError("is a file of a run", field="--json", value=str(options.json), next_step="Choose another name or folder")
    console = open_console()
    console.print(_table(scores, len(options.runs)))
    console.print("Interval: 95 %, over seeds and items. Seed: its share of the variance of the mean; the rest is that of the items.")
    if not all(score.items_counted for score in scores):
        console.print("–: no mean of items, so its interval is over seeds alone.")
    if options.json is not None:
        _write(options.json, scores)
    return ExitCode.COMPLETE


def _write(path: Path, scores: Sequence[CombinedScore]) -> None:
    """Writes every figure, whole or not at all."""
    lines = [{**dataclasses.asdict(score), "effect": score.effect, "seed_share": score.combined.seed_share} for score in scores]
    try:
        with storage_errors(path, field="--json", then="the same command does it again"):
            write_atomically(path, json.dumps(lines, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise SpecError(f"cannot be written: {error.strerror}", field="--json", value=str(path), next_step="Choose another file") from error


def _read(name: str) -> Results:
    path = output_of(name) / RESULTS
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError("has no report here", field="RUN", value=name, next_step=f"Looked for {path}; run it to its end first") from None
    except ValidationError as error:
        raise ArtifactError(f"{path} cannot be read", next_step="Write it again: transfer report FILE") from error


def _table(scores: Sequence[CombinedScore], runs: int) -> Table:
    from rich.table import Table

    from transfer_evaluator.table import number

    table = Table(title=f"Scores over {runs} seeds", title_justify="left")
    headings = ("suite", "task", "language", "metric", "baseline", "mean", "lowest to highest", "difference", "95 % interval", "seed")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 4 else "right", no_wrap=place >= 4)
    for score in scores:
        low, high = score.combined.interval
        mark = f" {score.effect}" if score.effect in ("better", "worse") else ""
        table.add_row(
            score.suite, score.task, score.language, score.metric, number(score.baseline), number(score.value),
            f"{number(score.lowest)} to {number(score.highest)}",
            number(score.combined.mean, sign=True) + mark if score.compared else "–",
            f"{number(low, sign=score.compared)} to {number(high, sign=score.compared)}",
            f"{100 * score.combined.seed_share:.0f} %" if score.items_counted else "–",
            style={"better": "green", "worse": "red"}.get(score.effect, ""),
        )  # fmt: skip
    return table

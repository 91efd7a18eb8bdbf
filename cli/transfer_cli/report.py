"""`transfer report`: writes the report of a finished experiment again, from its artifacts."""

from __future__ import annotations

import argparse
from pathlib import Path

from transfer_api.errors import ExitCode, SpecError
from transfer_api.load import load_experiment
from transfer_api.stage import plan_stages
from transfer_api.status import Phase
from transfer_cli import preflight
from transfer_cli.display import open_console, score_table
from transfer_cli.outputs import STAMP, read_status, write_outputs
from transfer_cli.paths import default_output, default_storage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, help="experiment file")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    parser.add_argument("--storage", type=Path, metavar="DIR", help="storage of the run (default: $TRANSFER_STORAGE or runs/.storage)")


def run(options: argparse.Namespace) -> int:
    """Writes report.md, report.html, results.json and model/ again and prints the table."""
    experiment = load_experiment(options.file)
    storage = (options.storage or default_storage()).absolute()
    output = (options.output or default_output(experiment.metadata.name)).absolute()
    status = read_status(output)
    if status is None or status.phase is not Phase.COMPLETE:
        raise SpecError(
            "is not complete", field="metadata.name", value=experiment.metadata.name, next_step=f"Run `transfer run {options.file}` first"
        )
    plan = plan_stages(experiment.spec, preflight.fingerprints(experiment, storage=storage, search=(options.file.absolute().parent,)))
    if [stage.key for stage in plan] != [stage.key for stage in status.stages]:
        raise SpecError(
            "has changed since it ran", field="spec", next_step=f"Run `transfer run {options.file}`; stages that are the same are reused"
        )
    (output / STAMP).unlink(missing_ok=True)
    scores = write_outputs(experiment, plan, status, storage=storage, output=output)
    console = open_console()
    if scores:
        console.print(score_table(scores))
    console.print(f"Written: {output}/report.html, report.md, results.json")
    return ExitCode.COMPLETE

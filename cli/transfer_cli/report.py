"""`transfer report`: writes the report of a finished experiment again, from its artifacts."""

from __future__ import annotations

import argparse
from pathlib import Path

from transfer_api.errors import ExitCode, SpecError
from transfer_api.load import load_experiment
from transfer_api.stage import input_paths, plan_stages
from transfer_api.status import ExperimentStatus, Phase, Reason, StageState
from transfer_cli import preflight
from transfer_cli.display import open_console, score_table
from transfer_cli.outputs import check_output, read_status, write_outputs, write_report_alone
from transfer_cli.paths import chosen_storage, default_output, folder, run_command
from transfer_pod.artifact import ArtifactStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, help="experiment file")
    parser.add_argument("--output", type=folder, metavar="DIR", help="folder of the run (default: runs/NAME)")
    parser.add_argument("--storage", type=folder, metavar="DIR", help="storage of the run (default: $TRANSFER_STORAGE or runs/.storage)")


def run(options: argparse.Namespace) -> int:
    """Writes report.md, report.html, results.json and model/ again and prints the table."""
    if options.file.is_dir():
        step = "Name the experiment's file; the folder of its run, unless it is the usual one, goes with --output"
        raise SpecError("is a folder", field="FILE", value=str(options.file), next_step=step)
    experiment = load_experiment(options.file)
    storage = chosen_storage(options.storage)
    output = (options.output or default_output(experiment.metadata.name)).absolute()
    status, command = read_status(output), run_command(options.file, output=options.output, storage=options.storage)
    stopped = status is not None and status.failure is not None and status.failure.reason is Reason.BEYOND_MARGIN
    if status is None or not (status.phase is Phase.COMPLETE or stopped):
        raise SpecError("is not complete", field="metadata.name", value=experiment.metadata.name, next_step=f"Run `{command}` first")
    check_output(output, experiment.metadata.name)
    _check_storage(status, storage)
    digests = preflight.fingerprints(experiment, storage=storage, search=(options.file.absolute().parent,))
    plan = plan_stages(experiment.spec, digests)
    if [stage.key for stage in plan] != [stage.key for stage in status.stages]:
        raise _changed(command, [path for path in input_paths(experiment.spec) if path not in digests])
    if stopped:
        write_report_alone(experiment, plan, status, storage=storage, output=output)
        open_console().print(f"Written: {output}/report.html, report.md, results.json; stopped before a result")
        return ExitCode.COMPLETE
    scores = write_outputs(experiment, plan, status, storage=storage, output=output, again=True)
    console = open_console()
    if scores:
        console.print(score_table(scores))
    console.print(f"Written: {output}/report.html, report.md, results.json")
    return ExitCode.COMPLETE


def _check_storage(status: ExperimentStatus, storage: Path) -> None:
    """Whether the storage is that of the run: by the keys that the run wrote down, whatever the file says now.

    Raises:
        SpecError: it lacks an artifact of the run.
    """
    store = ArtifactStore(storage)
    made = [stage for stage in status.stages if status.phase is Phase.COMPLETE or stage.state is StageState.COMPLETE]
    absent = [stage.name for stage in made if store.find(stage.kind, stage.key) is None]
    if absent:
        raise SpecError(
            f"does not hold what this run has made ({', '.join(absent)})", field="--storage", value=str(storage),
            next_step="Name the storage of the run, as for `transfer run`; it makes again what was removed",
        )  # fmt: skip


def _changed(command: str, absent: list[str]) -> SpecError:
    """Why the stages of the file are not those that ran: inputs that are gone, else other parameters or other content."""
    if absent:
        return SpecError(
            "reads what is not there any more, so its stages cannot be found", field="spec", value=", ".join(absent),
            next_step="Put it back where it was; a report is made from the artifacts of the very same inputs",
        )  # fmt: skip
    return SpecError(
        "has changed since it ran, or what it reads has", field="spec",
        next_step=f"Run `{command}`; stages that are the same are reused",
    )  # fmt: skip

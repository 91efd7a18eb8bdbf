"""`transfer status`: what a run on this machine has come to, as the resource's status would say it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transfer_api.errors import ExitCode, SpecError
from transfer_api.load import load_experiment
from transfer_api.status import Cause, ConditionType, ExperimentStatus, Phase, StageState
from transfer_cli.lock import is_held
from transfer_cli.outputs import STATUS, read_status
from transfer_cli.paths import default_output

INTERRUPTED = "Interrupted: its process is gone; the same `transfer run` goes on from the last checkpoint"

SAVED = "Suspended: everything is saved; the same `transfer run` goes on from there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("name", help="experiment name or file, or the folder of a run")
    parser.add_argument("-o", "--format", choices=["text", "yaml"], default="text", help="text for people, yaml as it is stored")


def run(options: argparse.Namespace) -> int:
    """Prints the status."""
    output = output_of(options.name)
    status = read_status(output)
    if status is None:
        step = f"Looked for {output / STATUS}; a run with --output goes by that folder"
        raise SpecError("has no run here", field="name", value=options.name, next_step=step)
    left = interrupted(output, status)
    if options.format == "text":
        sys.stdout.write(describe(status, left))
        return ExitCode.COMPLETE
    sys.stdout.write((output / STATUS).read_text(encoding="utf-8"))
    if left:
        print(f"transfer status: {INTERRUPTED}", file=sys.stderr)
    return ExitCode.COMPLETE


def output_of(name: str) -> Path:
    """The output folder that is meant by a name, a path of it, its status, or the file of an experiment that ran without --output.

    Raises:
        SpecErrors: a file that is neither.
    """
    given = Path(name)
    if given.is_file():
        return given.parent if given.name == STATUS else default_output(load_experiment(given).metadata.name)
    return given if "/" in name or (given / STATUS).exists() else default_output(name)


def interrupted(output: Path, status: ExperimentStatus) -> bool:
    """Whether a run ended without saying so: what it wrote last is not of a run that has ended, and none holds the folder."""
    ended = status.phase.terminal or status.phase is Phase.SUSPENDED
    return not ended and is_held(output) is False


def describe(status: ExperimentStatus, left: bool = False) -> str:
    """The status as a few aligned lines; `left` when it is that of a run whose process is gone."""
    lines = [f"Phase:     {INTERRUPTED if left else SAVED if status.phase is Phase.SUSPENDED else status.phase}"]
    if status.stage:
        lines.append(f"Stage:     {status.stage}")
    if status.progress is not None and status.progress.total_steps and not status.phase.terminal:
        told = status.progress
        lines.append(f"Progress:  {told.percentage} % (step {told.step} of {told.total_steps}, {told.tokens_per_second} tokens/s)")
    counts = [f"{cause.value} {count}" for cause in Cause if (count := status.restarts.count(cause))]
    lines.append(f"Restarts:  {', '.join(counts) or 'none'}")
    if status.failure is not None:
        lines.append(f"Failure:   {status.failure.reason}: {status.failure.message}")
    lines += [f"English:   {one.reason}: {one.message}" for one in status.conditions if one.type is ConditionType.ENGLISH_RETAINED]
    lines.append("Stages:")
    width = max((len(stage.name) for stage in status.stages), default=0)
    for stage in status.stages:
        state = "Stopped" if left and stage.state is StageState.RUNNING else stage.state
        lines.append(f"  {stage.name:{width}}  {state:9}  {stage.key[:10]}  {stage.message}".rstrip())
    if status.results is not None:
        lines.append("Scores:")
        for score in status.results.scores:
            beside = f" (base {score.baseline}, {score.difference})" if score.baseline is not None else ""
            lines.append(f"  {score.task} {score.metric} [{score.language}]: {score.value}{beside}")
    return "\n".join(lines) + "\n"

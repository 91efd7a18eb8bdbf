"""`transfer ledger verify`: proves that no row of a training run was lost and none was read twice, whatever happened to its pods.

The order in which rows are to be read follows from the seed, the mixture and the data set alone; the ledger says what was read. Both
are compared here, step by step, for each finished training stage. Losses and times cannot be derived from anything: for them
the file is held against its hash in the artifact's manifest.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from transfer_api.errors import ArtifactError, ExitCode, SpecError
from transfer_api.stage import StageKind, StagePlan, TrainingParameters
from transfer_api.status import StageState, StageStatus
from transfer_cli.outputs import STATUS, read_status
from transfer_cli.paths import default_storage
from transfer_cli.status import output_of
from transfer_pod.artifact import ArtifactStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", choices=["verify"], help="verify: compare what was read with what was to be read")
    parser.add_argument("name", metavar="RUN", help="experiment name, or the folder of a run")
    parser.add_argument("--storage", type=Path, metavar="DIR", help="storage of the run (default: $TRANSFER_STORAGE or runs/.storage)")


def run(options: argparse.Namespace) -> int:
    """Prints a verdict for each training stage. Exit codes: 0 proved, 2 no such run, 11 a ledger is wrong or unreadable."""
    output = output_of(options.name)
    status = read_status(output)
    if status is None:
        raise SpecError("has no run here", field="RUN", value=options.name, next_step=f"Looked for {output / STATUS}")
    store = ArtifactStore((options.storage or default_storage()).absolute())
    code = ExitCode.COMPLETE
    trained = [stage for stage in status.stages if stage.kind.elastic]
    for stage in trained:
        try:
            print(f"{stage.name}: {verified(store, stage)}")
        except ArtifactError as error:
            print(f"{stage.name}: WRONG: {error}", file=sys.stderr)
            code = ExitCode.UNREADABLE
    if not trained:
        print("nothing was trained, so there is no ledger")
    return code


def verified(store: ArtifactStore, stage: StageStatus) -> str:
    """One line on a training stage whose ledger is right.

    Raises:
        ArtifactError: the ledger, or what it is compared with, is missing, cut short or wrong.
    """
    from transfer_trainer.ledger import LEDGER, verify_ledger
    from transfer_trainer.rows import row_order, total_steps
    from transfer_trainer.store import RowStore

    if store.find(stage.kind, stage.key) is None:
        if stage.state is StageState.COMPLETE:
            raise ArtifactError(f"its artifact is not in {store.root}", next_step="Name the storage of the run with --storage")
        return _verified_so_far(store, stage)
    manifest = store.manifest(stage.kind, stage.key)
    try:
        parameters = TrainingParameters.model_validate(manifest["stage"]["parameters"])
        dataset = manifest["stage"]["inputs"]["dataset"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"the manifest of {stage.name} does not say what was trained on: {error}") from error
    sources = RowStore.open(store.path(StageKind.DATASET, dataset) / "rows").sources
    steps = total_steps(parameters, sources)
    path = store.path(stage.kind, stage.key) / LEDGER
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    summary = verify_ledger(path, row_order(parameters.seed, sources), parameters.rows_per_step, steps, parameters.anomalies)
    store.file(stage.kind, stage.key, LEDGER)  # last: a wrong line says more than a wrong hash
    sizes = [size for size, _ in itertools.groupby(line.world_size for line in summary.lines)]
    rows = steps * parameters.rows_per_step
    left_out = f", of which {len(summary.skipped)} steps were left out as anomalous" if summary.skipped else ""
    return (
        f"proved: {steps} steps, {rows} rows, each read when it was due and none twice{left_out}; processes {' → '.join(map(str, sizes))}; "
        f"{summary.lost_steps} steps done again after a loss"
    )


def _verified_so_far(store: ArtifactStore, stage: StageStatus) -> str:
    """The same of a stage that is not finished: its steps up to now."""
    from transfer_trainer.ledger import LEDGER, STAGE, verify_ledger
    from transfer_trainer.rows import row_order
    from transfer_trainer.store import RowStore

    work = store.work(stage.kind, stage.key)
    if not (work / LEDGER).is_file() or not (work / STAGE).is_file():
        return "not begun"
    try:
        plan = StagePlan.model_validate_json((work / STAGE).read_bytes())
        parameters = TrainingParameters.model_validate(plan.parameters)
        sources = RowStore.open(store.path(StageKind.DATASET, plan.inputs["dataset"]) / "rows").sources
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{work / STAGE} does not say what is trained on: {error}") from error
    summary = verify_ledger(work / LEDGER, row_order(parameters.seed, sources), parameters.rows_per_step, policy=parameters.anomalies)
    steps = summary.steps + len(summary.skipped)
    return (
        f"not finished; right so far: {steps} steps, {steps * parameters.rows_per_step} rows, each read when it was due and "
        f"none twice; {summary.lost_steps} steps done again after a loss"
    )

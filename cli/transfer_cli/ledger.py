"""`transfer ledger verify`: proves that a training run read the rows that it was to read, once a pass, whatever happened to its pods.

The order in which rows are to be read follows from the seed, the mixture and the data set alone; the ledger says what was read. Both
are compared here, step by step, for each training stage, as far as it is. Losses and times cannot be derived from anything: for them
the file is held against its hash in the artifact's manifest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys

from transfer_api.errors import ArtifactError, ExitCode, SpecError
from transfer_api.stage import StageKind, TrainingParameters
from transfer_api.status import StageState, StageStatus
from transfer_cli.outputs import STATUS, read_status
from transfer_cli.paths import chosen_storage, folder
from transfer_cli.status import output_of
from transfer_pod.artifact import ArtifactStore

_NAME_STORAGE = "Name the storage of the run with --storage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", choices=["verify"], help="verify: compare what was read with what was to be read")
    parser.add_argument("name", metavar="RUN", help="experiment name or file, or the folder of a run")
    parser.add_argument("--storage", type=folder, metavar="DIR", help="storage of the run (default: $TRANSFER_STORAGE or runs/.storage)")


def run(options: argparse.Namespace) -> int:
    """Prints a verdict for each training stage. Exit codes: 0 proved, 2 no such run, 11 a ledger is wrong or unreadable."""
    output = output_of(options.name)
    status = read_status(output)
    if status is None:
        step = f"Looked for {output / STATUS}; a run with --output goes by that folder"
        raise SpecError("has no run here", field="RUN", value=options.name, next_step=step)
    store = ArtifactStore(chosen_storage(options.storage))
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
    """One line on a training stage whose ledger is right: the whole of a finished one, or its steps so far.

    Raises:
        ArtifactError: the ledger, or what it is compared with, is missing, cut short or wrong.
    """
    from transfer_trainer.ledger import LEDGER, STAGE, verify_ledger
    from transfer_trainer.rows import row_order, total_steps
    from transfer_trainer.store import RowStore

    there = store.find(stage.kind, stage.key)
    finished = there is not None
    if not finished and stage.state is StageState.COMPLETE:
        raise ArtifactError(f"its artifact is not in {store.root}", next_step=_NAME_STORAGE)
    if there is not None and stage.artifact is not None and there.digest != stage.artifact.digest:
        raise ArtifactError(f"what is in {store.root} was made by another run of the same stage", next_step=_NAME_STORAGE)
    folder = store.path(stage.kind, stage.key) if finished else store.work_path(stage.kind, stage.key)
    if not finished and not all((folder / name).is_file() for name in (LEDGER, STAGE)):
        return "not begun"
    try:
        plan = store.manifest(stage.kind, stage.key)["stage"] if finished else json.loads((folder / STAGE).read_bytes())
        parameters = TrainingParameters.model_validate(plan["parameters"])
        dataset = plan["inputs"]["dataset"]
    except (KeyError, TypeError, ValueError) as error:
        where = "manifest" if finished else STAGE
        raise ArtifactError(f"the {where} of {stage.name} does not say what was trained on: {error}") from error
    sources = RowStore.open(store.path(StageKind.DATASET, dataset) / "rows").sources
    path = folder / LEDGER
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    wanted = total_steps(parameters, sources) if finished else None
    order = row_order(parameters.seed, sources)
    summary = verify_ledger(path, order, parameters.rows_per_step, wanted, parameters.anomalies)
    if finished:
        store.file(stage.kind, stage.key, LEDGER)  # last: a wrong line says more than a wrong hash
    sizes = [size for size, _ in itertools.groupby(line.world_size for line in summary.lines)]
    steps = summary.steps + len(summary.skipped)
    left_out = f", of which {len(summary.skipped)} steps were left out as anomalous" if summary.skipped else ""
    rows = steps * parameters.rows_per_step
    passes, most_read = max(
        (math.ceil(use / (source.rows or 1)), source.name) for use, source in zip(order.uses(rows), sources, strict=True)
    )
    once = "none twice" if passes <= 1 else f"none twice in a pass (passes over {most_read}: {passes})"
    return (
        f"{'proved' if finished else 'not finished; right so far'}: {steps} steps, {rows} rows, each read when it was due "
        f"and {once}{left_out}; processes {' → '.join(map(str, sizes)) or 'none yet'}; "
        f"{summary.lost_steps} steps done again after a loss"
    )

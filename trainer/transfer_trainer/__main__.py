"""A pod of the trainer: `python -m transfer_trainer`. The environment says which stage (transfer_pod/context.py)."""

from __future__ import annotations

import logging
import sys

from transfer_api.errors import SpecError
from transfer_api.stage import StageKind
from transfer_pod.context import PodContext
from transfer_pod.end import leave_when_asked
from transfer_pod.importing import importing
from transfer_pod.shard import run_shard
from transfer_trainer.process import die_with_parent


def main() -> int:
    """Runs the pod's stage and returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    die_with_parent()
    leave_when_asked()
    try:
        context = PodContext.read()
    except SpecError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    match context.stage.kind:
        case StageKind.VOCABULARY:
            with importing():
                from transfer_trainer import vocabulary

            return run_shard(context, vocabulary.run)
        case StageKind.DATASET:
            with importing():
                from transfer_trainer import dataset

            return run_shard(context, dataset.run)
        case StageKind.PRETRAINING | StageKind.INSTRUCTION_TUNING:
            with importing():
                from transfer_trainer.launcher import launch

            return launch(context)
        case StageKind.EVALUATION:
            print("evaluation runs in transfer_evaluator", file=sys.stderr)
            return int(SpecError.exit_code)


if __name__ == "__main__":
    sys.exit(main())

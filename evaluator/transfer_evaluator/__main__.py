"""An evaluation pod: `python -m transfer_evaluator`."""

from __future__ import annotations

import logging
import os
import sys

from transfer_api.progress import ResultMessage
from transfer_pod.context import PodContext
from transfer_pod.end import leave_when_asked
from transfer_pod.importing import importing
from transfer_pod.shard import Report, run_shard


def main() -> int:
    """Runs the stage that the environment describes and returns the pod's exit code."""
    # Progress goes to /progress; bars of four libraries would only fill the pod's log.
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    leave_when_asked()
    return run_shard(PodContext.read(), _run)


def _run(context: PodContext, report: Report) -> ResultMessage:
    # torch takes seconds to import: /healthz answers meanwhile, and a finished artifact is found without it.
    with importing():
        from transfer_evaluator.stage import run

    return run(context, report)


if __name__ == "__main__":
    sys.exit(main())

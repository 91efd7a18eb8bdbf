"""An evaluation pod: `python -m transfer_evaluator`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Runs the stage that the environment describes and returns the pod's exit code."""
    # Progress goes to /progress; bars of four libraries would only fill the pod's log.
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

    import logging

    from transfer_evaluator import stage
    from transfer_pod.context import PodContext
    from transfer_pod.shard import run_shard

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    return run_shard(PodContext.read(), stage.run)


if __name__ == "__main__":
    sys.exit(main())

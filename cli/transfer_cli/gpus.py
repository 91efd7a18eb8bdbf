"""Which GPUs of this machine a worker gets: its share of those that this process may use."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from transfer_api.errors import SpecError

VARIABLE = "CUDA_VISIBLE_DEVICES"


def usable_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without that variable, all of the machine."""
    allowed = os.environ.get(VARIABLE)
    if allowed is not None:
        names = [name.strip() for name in allowed.split(",")]
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA reads it: what follows is invisible
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def worker_share(workers: int, index: int) -> list[str]:
    """The GPUs of worker `index` of so many; none on a machine without GPUs.

    Raises:
        SpecError: more workers than GPUs.
    """
    here = usable_gpus()
    if here and workers > len(here):
        raise SpecError(
            "is more than this machine has GPUs", field="spec.workers.replicas", value=workers, allowed=f"at most {len(here)}",
            next_step="Ask for fewer workers; each takes its share of the GPUs",
        )  # fmt: skip
    return here[index % workers :: workers]

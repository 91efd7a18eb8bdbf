"""Where `transfer` puts things on one machine when nothing else is said."""

from __future__ import annotations

import os
from pathlib import Path

RUNS = Path("runs")
STORAGE_VARIABLE = "TRANSFER_STORAGE"


def default_storage() -> Path:
    """Models, data, checkpoints and artifacts: $TRANSFER_STORAGE, else runs/.storage; shared by all experiments."""
    return Path(os.environ.get(STORAGE_VARIABLE) or RUNS / ".storage")


def default_output(name: str) -> Path:
    """Report, results, status and model of one experiment."""
    return RUNS / name

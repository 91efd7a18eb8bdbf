"""Where `transfer` puts things on one machine: what the options say, or what holds when they say nothing."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from transfer_api.errors import SpecError

RUNS = Path("runs")
STORAGE_VARIABLE = "TRANSFER_STORAGE"


def folder(text: str) -> Path:
    """A folder as an option names it; an empty name (a shell's variable that is not set) would mean the folder one stands in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a folder, or leave the option out")
    return Path(text)


def default_storage() -> Path:
    """Models, data, checkpoints and artifacts: $TRANSFER_STORAGE, else runs/.storage; shared by all experiments."""
    return Path(os.environ.get(STORAGE_VARIABLE) or RUNS / ".storage")


def chosen_storage(given: Path | None) -> Path:
    """The storage of `--storage`, or else the default one; it need not be there yet.

    Raises:
        SpecError: it is, or lies below, something that is no folder.
    """
    storage = (given or default_storage()).absolute()
    there = next(place for place in (storage, *storage.parents) if os.path.exists(place))  # noqa: PTH110 - false where it may not look
    if not there.is_dir():
        raise SpecError(
            "is not a folder" if there == storage else f"lies below {there}, which is not a folder",
            field="--storage" if given or not os.environ.get(STORAGE_VARIABLE) else STORAGE_VARIABLE, value=str(storage),
            next_step="Name the folder of the storage, or one that is to be made",
        )  # fmt: skip
    return storage


def default_output(name: str) -> Path:
    """Report, results, status and model of one experiment."""
    return RUNS / name


def run_command(file: Path, *, output: Path | None, storage: Path | None) -> str:
    """`transfer run` of a file with the folders that were given, to be copied."""
    words = ["transfer", "run", str(file)]
    for option, given in (("--output", output), ("--storage", storage)):
        words += [option, str(given)] if given is not None else []
    return shlex.join(words)

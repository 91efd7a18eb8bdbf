"""`transfer validate`: checks experiment files as the API server would, without model, data or network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transfer_api.errors import ExitCode
from transfer_api.load import SpecErrors, load_experiments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="experiment file")


def run(options: argparse.Namespace) -> int:
    """Prints `FILE: ok` or every problem of each file. Exit codes: 0 all are ok, 2 some file is not."""
    code = ExitCode.COMPLETE
    for file in options.files:
        try:
            load_experiments(file)
        except SpecErrors as errors:
            print(errors, file=sys.stderr)
            code = ExitCode.REFUSED
        else:
            print(f"{file}: ok")
    return code

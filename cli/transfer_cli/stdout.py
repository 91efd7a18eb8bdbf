"""Standard output, whatever it is: full, closed, a pipe that nobody reads, or of a code that lacks our characters.

What could not be written may have been the answer, so a command that loses it says so and does not end with 0. A reader that has gone
(`| head`) had what it wanted, and who closed it (`>&-`) wants none: neither changes the exit code.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from transfer_api.errors import ExitCode


def prepare() -> None:
    """Before anything is printed: a closed one leads nowhere, and characters that its code lacks become `?`."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (as long as the process lasts)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def delivered(code: int) -> int:
    """The exit code once all is written that was printed."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return give_up(error) or code
    return code


def is_lost() -> bool:
    """Whether it is standard output that failed: then it does again."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def give_up(error: OSError) -> int:
    """Leads all further output nowhere, or Python would try again at its end; says why. Returns the exit code for what was lost."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    if isinstance(error, BrokenPipeError):
        return ExitCode.COMPLETE
    print(f"transfer: standard output cannot be written: {error.strerror}", file=sys.stderr)
    return ExitCode.CANNOT_WORK

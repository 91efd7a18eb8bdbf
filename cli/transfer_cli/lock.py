"""The lock of an output folder: one run at a time, and whether there is one now.

The kernel lets go of it whatever happens to the process that held it. So a status that says Running beside a free lock was left by
a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from transfer_api.errors import SpecError
from transfer_cli.outputs import LOCK, output_errors

_LOOKS_LAST_S = 0.5
"""A look at the lock holds it for an instant; a run that begins in it waits this long at most."""


@contextmanager
def hold(output: Path, name: str) -> Iterator[None]:
    """Holds the output folder of the experiment of this name.

    Raises:
        SpecError: another run holds it.
        StorageError: the folder is full or read-only.
    """
    with ExitStack() as stack:
        with output_errors(output):
            file = stack.enter_context((output / LOCK).open("a+"))
            _take(file, name)
        yield


def is_held(output: Path) -> bool | None:
    """Whether a run holds the output folder now; None where that cannot be told."""
    try:
        with (output / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None  # another user's, or a file system without locks
    return False


def _take(file: TextIO, name: str) -> None:
    if not _taken(file):
        file.seek(0)
        raise SpecError(
            f"is being run by process {file.read().strip() or '?'}", field="metadata.name", value=name,
            next_step="Wait for it, stop it with Ctrl-C, or choose another --output",
        )  # fmt: skip
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


def _taken(file: TextIO) -> bool:
    end = time.monotonic() + _LOOKS_LAST_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)

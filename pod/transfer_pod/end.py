"""How a pod ends: one termination message, one exit code of the table in docs/concepts.md."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from transfer_api.errors import ExitCode, SaveRequested, TransferError
from transfer_api.progress import Outcome, ResultMessage
from transfer_pod.artifact import storage_errors

logger = logging.getLogger(__name__)
CRASHED = 1


def leave_when_asked() -> None:
    """Has SIGTERM end this process with 75 until a stage has a handler of its own.

    The first process of a container ignores signals that it does not handle: a drain in its first seconds, while it
    imports, would wait for the whole grace period.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(int(ExitCode.SAVED)))


def finish(termination_log: Path, storage: Path, work: Callable[[], ResultMessage]) -> int:
    """Does the work, writes the termination message and returns the exit code.

    A `TransferError` gives its own code; a full or read-only disk gives 10; anything else is a crash (1), whose last
    line of traceback goes into the message and whose traceback goes to the log.
    """
    try:
        with storage_errors(storage):
            message, code = work(), int(ExitCode.COMPLETE)
    except SaveRequested as request:
        message, code = ResultMessage(outcome=Outcome.SAVED, reason="SaveRequested", message=str(request)), int(ExitCode.SAVED)
    except TransferError as error:
        logger.error("%s", error)
        message, code = ResultMessage(outcome=Outcome.FAILED, reason=type(error).__name__, message=str(error)), int(error.exit_code)
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        message, code = ResultMessage(outcome=Outcome.FAILED, reason="Crash", message=text), CRASHED
    write_termination_message(termination_log, message)
    return code


def write_termination_message(termination_log: Path, message: ResultMessage) -> None:
    """Writes the message where the kubelet (or the local backend) reads it; a failure to do so is only logged."""
    try:
        termination_log.write_text(message.encode(), encoding="utf-8")
    except OSError as error:
        print(f"cannot write {termination_log}: {error}", file=sys.stderr)

"""Errors that people read, and the exit codes that the operator reads.

    TransferError                 what is wrong, where, and the way out
    ├── SpecError          10     the experiment file cannot work (2 from `transfer`, before anything runs)
    ├── ModelError         10     the model cannot be used
    ├── DataError          10     a text, question or instruction file cannot be used
    ├── StorageError       10     the storage cannot be written
    ├── ArtifactError      11     an artifact or checkpoint is unreadable or of another experiment
    ├── SaveRequested      75     not an error: saved because asked to stop; goes on from there
    └── Superseded         78     a newer attempt, or another experiment, has taken over what this pod makes
        └── VersionMismatch       a worker does not run what the others of its attempt run

The class decides whether the operator tries again (the table "Exit codes" in docs/concepts.md); a message is for people
only and is never parsed.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable


class ExitCode(enum.IntEnum):
    """Exit codes of experiment pods, and of `transfer` (which adds 2: refused before anything ran)."""

    COMPLETE = 0
    REFUSED = 2
    CANNOT_WORK = 10
    UNREADABLE = 11
    SAVED = 75
    SUPERSEDED = 78
    KILLED = 137


class TransferError(Exception):
    """Something a person can mend.

    Args:
        problem: what is wrong, one sentence without a full stop.
        field: the field of the experiment file, dotted (``spec.pretraining.tokens``), or None.
        value: what was found there.
        allowed: what would be accepted.
        next_step: what to do about it.
    """

    exit_code = ExitCode.CANNOT_WORK

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        value: object = None,
        allowed: str | None = None,
        next_step: str | None = None,
    ) -> None:
        self.problem = problem
        self.field = field
        self.value = value
        self.allowed = allowed
        self.next_step = next_step
        super().__init__(self._text())

    def __reduce__(self) -> tuple[Callable[[], TransferError], tuple[()]]:
        """Crosses from one process to another whole."""
        again = functools.partial(
            type(self), self.problem, field=self.field, value=self.value, allowed=self.allowed, next_step=self.next_step
        )
        return again, ()

    def _text(self) -> str:
        where = f"{self.field}: " if self.field else ""
        got = f" (got {shorten(self.value)})" if self.value is not None else ""
        allowed = f"; allowed: {self.allowed}" if self.allowed else ""
        step = f". {self.next_step}" if self.next_step else ""
        return f"{where}{self.problem}{got}{allowed}{step}"


class SpecError(TransferError):
    """The experiment file cannot work as written."""


class ModelError(TransferError):
    """The model or its tokenizer cannot be used."""


class DataError(TransferError):
    """A file of texts, questions or instructions cannot be used."""


class StorageError(TransferError):
    """The storage cannot be written: full, read-only or not ours."""


class ArtifactError(TransferError):
    """An artifact or checkpoint is cut short, altered, or belongs to another experiment."""

    exit_code = ExitCode.UNREADABLE


class SaveRequested(TransferError):
    """Raised where work stops because it was asked to, after the checkpoint is complete."""

    exit_code = ExitCode.SAVED


class Superseded(TransferError):
    """Raised where others have taken over what a pod makes, so that it has to end for good."""

    exit_code = ExitCode.SUPERSEDED


class VersionMismatch(Superseded):
    """Raised where a worker runs other versions than the others of its attempt: only another attempt can mend that."""


def shorten(value: object, limit: int = 80) -> str:
    """`repr` of a value, cut in the middle so that a message stays readable whatever was typed; a path, to be copied, stays whole."""
    text = repr(value)
    if len(text) <= limit or _is_path(text[1:-1]):
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]} ({len(text)} characters)"


def _is_path(text: str) -> bool:
    """Whether it reads like one: absolute, or several names without a space, and no longer than the kernel takes."""
    return len(text) < 4096 and "\\n" not in text and (text.startswith(("/", "~/")) or ("/" in text and " " not in text))

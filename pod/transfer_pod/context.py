"""Who this pod is and what it is to do, read once from the environment (transfer_api/task.py), and where its inputs are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transfer_api.errors import DataError
from transfer_api.task import PodTask

NOT_THERE = "no such file or folder"


@dataclass(frozen=True, kw_only=True)
class PodContext(PodTask):
    """The task of this pod, and where its inputs are."""

    @property
    def listen(self) -> str:
        """Where its server listens: everywhere in a pod, nowhere else than here on one machine."""
        return self.address if self.address.startswith("127.") else "0.0.0.0"  # noqa: S104

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its series besides the stage."""
        return {"experiment": self.experiment, "namespace": self.namespace}

    def find(self, path: str, field: str = "path") -> Path:
        """Resolves an input path: absolute, or relative to the storage, then to the folders of `search`.

        Raises:
            DataError: it is in none of them, or is neither a file nor a folder.
        """
        return find_input(path, self.roots, field)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where relative paths are looked up, in this order."""
        return (self.storage, *self.search)


def find_input(path: str, roots: tuple[Path, ...], field: str = "path") -> Path:
    """Resolves an input path (a glob matches when at least one file does); see `PodContext.find`."""
    with _lookup_errors(path, field):
        for root in roots:
            candidate = root / path  # an absolute path stays as it is
            if candidate.exists() and not (candidate.is_file() or candidate.is_dir()):  # reading a pipe would wait for ever
                raise DataError(
                    "is a pipe, a socket or a device", field=field, value=path, allowed="a file or a folder",
                    next_step="Write what it gives into a file: it is read more than once",
                )  # fmt: skip
            if candidate.exists() or (glob_characters(path) and any(True for _ in _expand(candidate))):
                return candidate
    looked = ", ".join(str(root) for root in roots) if not Path(path).is_absolute() else "as given"
    raise DataError(
        NOT_THERE, field=field, value=path,
        next_step=f"Looked in: {looked}. Put it there, or write an absolute path",
    )  # fmt: skip


def glob_characters(path: str | Path) -> bool:
    """Whether a path is a pattern."""
    return any(character in str(path) for character in "*?[")


def expand(path: Path) -> list[Path]:
    """The files of a path or glob, sorted by name so that every machine reads them in one order.

    Only what does not exist as it is written is a pattern: folders may have brackets in their names.
    """
    with _lookup_errors(str(path), "path"):
        return _expand(path)


@contextlib.contextmanager
def _lookup_errors(path: str, field: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"cannot be looked up: {what}", field=field, value=path, next_step="Let ** stand alone between slashes, and shorten names"
        ) from error


def _expand(path: Path) -> list[Path]:
    base = Path(path.anchor or ".")
    parts = list(path.relative_to(base).parts if path.anchor else path.parts)
    while parts and (base / parts[0]).exists():
        base /= parts.pop(0)
    if not parts:
        return [base]
    return sorted(found for found in base.glob(str(Path(*parts))) if found.is_file()) if base.is_dir() else []

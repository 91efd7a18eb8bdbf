"""What is in the files that a stage reads, by digest: the key of what it makes is of these, and of no others.

`transfer run` takes the digests when it plans; the pods of a stage look again before they begin and before what they made is kept.
Digests are kept in `<storage>/.fingerprints.json` beside size, time and inode of each file, so that looking reads no content again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transfer_api.errors import ArtifactError, DataError
from transfer_pod.artifact import sha256, write_atomically
from transfer_pod.context import PodContext, expand, find_input

CACHE = ".fingerprints.json"
# Of a model folder only what decides how it is loaded: a README does not make it another model.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")


def check_contents(context: PodContext) -> None:
    """Sees that the inputs of the stage are still those that its key was made of.

    On a cluster nobody who makes keys sees the files, and there is nothing to compare.

    Raises:
        ArtifactError: a file has changed, or is gone.
    """
    cache = Digests(context.storage)
    for path, digest in context.stage.files.items():
        try:
            now = cache.of_input(find_input(path, context.roots), model=path not in context.stage.parameters.get("taskFolders", ()))
        except DataError as error:
            raise ArtifactError("has gone since this run was planned", field="path", value=path, next_step="Put it back") from error
        if now != digest:
            raise ArtifactError(
                "has changed since this run was planned", field="path", value=path,
                next_step="Type the same command again to go on with what is there now, or put the old content back first",
            )  # fmt: skip
    cache.save()


class Digests:
    """Digests of files that have not changed since they were read. A cache that cannot be read or written only costs time.

    Args:
        storage: where the cache is.
    """

    def __init__(self, storage: Path) -> None:
        self.path = storage / CACHE
        self.changed = False
        self.entries: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries = loaded if isinstance(loaded, dict) else {}

    def of_input(self, place: Path, *, model: bool) -> str:
        """SHA-256 over the files behind an input path.

        Args:
            place: file, glob or folder.
            model: whether a folder is a model's, of which only some files count.

        Raises:
            DataError: one cannot be read.
        """
        total = hashlib.sha256()
        for name, file in _files(place, model=model):
            total.update(f"{name}\0{self.digest(file)}\n".encode())
        return total.hexdigest()

    def digest(self, file: Path) -> str:
        """SHA-256 of a file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            state = file.stat()
            mark = [state.st_size, state.st_mtime_ns, state.st_ino]
            name = str(file.resolve())
            known = self.entries.get(name)
            if isinstance(known, dict) and known.get("mark") == mark and isinstance(known.get("sha256"), str):
                return str(known["sha256"])
            digest = sha256(file)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", value=str(file), next_step="Let this user read it") from error
        self.entries[name] = {"mark": mark, "sha256": digest}
        self.changed = True
        return digest

    def save(self) -> None:
        """Writes the cache when it has changed and the storage is there."""
        if self.changed and self.path.parent.is_dir():
            with contextlib.suppress(OSError):
                write_atomically(self.path, json.dumps(self.entries, indent=0, sort_keys=True))


def _files(place: Path, *, model: bool) -> Iterable[tuple[str, Path]]:
    """The files behind a path, each with its name below it."""
    if not place.is_dir():
        return [(file.name, file) for file in expand(place)]
    if model:
        return sorted({file.name: file for pattern in MODEL_FILES for file in place.glob(pattern) if file.is_file()}.items())
    return sorted((str(file.relative_to(place)), file) for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts)

"""Artifacts: what a stage leaves in the storage, addressed by its key and sealed by a manifest.

    <storage>/artifacts/<kind>/<key>/            the files and manifest.json, complete or not there at all
    <storage>/work/<kind>/<key>/                 checkpoints, ledger and files of a stage that is not finished

A folder is filled under `work/`, its manifest is written last, and one rename puts it in place; so whatever is killed
whenever, a reader finds a complete artifact or none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfer_api.errors import ArtifactError, StorageError
from transfer_api.progress import UNJUDGED, ArtifactReference, Outcome, ResultMessage, Score
from transfer_api.stage import StageKind, StagePlan, artifact_path

MANIFEST = "manifest.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


class ArtifactStore:
    """The artifacts below one storage root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: StageKind, key: str) -> Path:
        """Folder of a finished artifact (which need not exist)."""
        return self.root / artifact_path(kind, key)

    def work_path(self, kind: StageKind, key: str) -> Path:
        """Folder of an unfinished stage (which need not exist)."""
        return self.root / "work" / kind.value / key

    def work(self, kind: StageKind, key: str) -> Path:
        """Folder of an unfinished stage, created when it is not there."""
        folder = self.work_path(kind, key)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, kind: StageKind, key: str) -> ArtifactReference | None:
        """The artifact if its manifest is there; its files are not read (`verify` does)."""
        manifest = self.path(kind, key) / MANIFEST
        try:
            content = manifest.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtifactError(f"{manifest} cannot be read: {error.strerror}") from error
        return ArtifactReference(
            key=key, path=str(self.path(kind, key).relative_to(self.root)), digest=f"sha256:{hashlib.sha256(content).hexdigest()}"
        )

    def manifest(self, kind: StageKind, key: str) -> dict[str, Any]:
        """Content of the manifest: `stage` (the plan), `files` (path to size and sha256), `numbers`, `scores`.

        Raises:
            ArtifactError: there is none, or it is not what `commit` wrote.
        """
        path = self.path(kind, key) / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(path.read_text())
            if manifest["key"] != key or not isinstance(manifest["files"], dict):
                raise ValueError("it is of another artifact")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is not a readable manifest: {error}", next_step=_REMOVE.format(path.parent)) from error
        return manifest

    def result(self, kind: StageKind, key: str) -> ResultMessage | None:
        """What the stage that left this artifact came to, or None where there is no artifact."""
        reference = self.find(kind, key)
        if reference is None:
            return None
        manifest = self.manifest(kind, key)
        scores = [Score.model_validate(score) for score in manifest.get("scores", [])]
        numbers = manifest.get("numbers", {})
        return ResultMessage(outcome=Outcome.COMPLETE, artifact=reference, reused=True, scores=scores, numbers=numbers)

    def settled(self, kind: StageKind, key: str) -> ResultMessage | None:
        """The same, but None also where the artifact is provisional, which is made again."""
        result = self.result(kind, key)
        return None if result is not None and result.provisional else result

    def open(self, kind: StageKind, key: str, *, verify: bool = True, part: str = "") -> Path:
        """Folder of a finished artifact, or of a `part` of it, every file of that checked against the manifest unless `verify` is false.

        Raises:
            ArtifactError: incomplete, cut short or altered; the message names the file.
        """
        folder = self.path(kind, key)
        named = {name: entry for name, entry in self.manifest(kind, key)["files"].items() if name.startswith(f"{part}/" if part else "")}
        if not named:
            raise ArtifactError(f"{folder} has no {part}", next_step=_REMOVE.format(folder))
        for name, entry in named.items():
            _check(folder, name, entry, verify=verify)
        return folder / part

    def file(self, kind: StageKind, key: str, name: str) -> Path:
        """One file of a finished artifact, checked against the manifest as `open` checks all.

        Raises:
            ArtifactError: missing, cut short or altered, or the manifest does not name it.
        """
        folder = self.path(kind, key)
        entry = self.manifest(kind, key)["files"].get(name)
        if entry is None:
            raise ArtifactError(f"{folder / MANIFEST} names no {name}", next_step=_REMOVE.format(folder))
        return _check(folder, name, entry, verify=True)

    def draft(self, stage: StagePlan, pod: str) -> Path:
        """Where a pod fills the artifact of a stage: its own folder, for one that was given up may still be writing."""
        folder = self.work(stage.kind, stage.key) / f"artifact.{pod}"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def commit(self, stage: StagePlan, folder: Path, **facts: Any) -> ArtifactReference:
        """Seals a filled folder: writes the manifest and moves it into place. `facts` go into the manifest.

        Where another pod was first, its artifact stays and this folder is dropped: the same key means the same content. What else
        lies in the stage's work folder is of no more use and goes too.

        A provisional artifact (`numbers` say so) leaves the work folder, and gives its place to the one that is made after it.
        """
        target = self.path(stage.kind, stage.key)
        provisional = bool(facts.get("numbers", {}).get(UNJUDGED))
        with storage_errors(target):
            files = {str(path.relative_to(folder)): file_entry(path) for path in sorted(folder.rglob("*")) if path.is_file()}
            manifest = {"key": stage.key, "stage": stage.model_dump(mode="json", by_alias=True), "files": files, **facts}
            write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
            allow_reading(folder)
            sync(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                self._replace_provisional(stage, folder, target)
            sync_folder(target.parent)
            if not provisional:  # only now: until here a power cut leaves the checkpoints
                shutil.rmtree(self.work_path(stage.kind, stage.key), ignore_errors=True)
        reference = self.find(stage.kind, stage.key)
        assert reference is not None
        return reference

    def _replace_provisional(self, stage: StagePlan, folder: Path, target: Path) -> None:
        """Puts an artifact in the place of a provisional one. Killed in between it leaves none, which is made again from what is kept."""
        found = self.result(stage.kind, stage.key)
        if found is None or not found.provisional:
            return
        old = folder.with_name(f"{folder.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _check(folder: Path, name: str, entry: dict[str, Any], *, verify: bool) -> Path:
    file = folder / name
    size = file.stat().st_size if file.is_file() else None
    if size != entry["size"] or (verify and sha256(file) != entry["sha256"]):
        raise ArtifactError(f"{file} is {'missing' if size is None else 'not the file that was written'}", next_step=_REMOVE.format(folder))
    return file


_REMOVE = "Remove {} to have it made again"
_GOES_ON = "what is finished is kept and the run goes on from its last checkpoint"


@contextlib.contextmanager
def storage_errors(path: Path, *, field: str = "storage", option: str = "", then: str = _GOES_ON) -> Iterator[None]:
    """Turns a full or read-only disk into a StorageError that names the folder and the way out.

    Args:
        path: what is written.
        field: what a user calls the folder.
        option: how another one is chosen, where there is an option for it.
        then: what comes of a disk that is full, once there is room.
    """
    another = f"another folder with {option}" if option else "another folder"
    try:
        yield
    except OSError as error:
        number = _number(error)
        if number in _NO_SPACE:
            free = f"Free space there, or choose {another}; {then}"
            raise StorageError("no space left", field=field, value=str(path), next_step=free) from error
        if number == errno.EXDEV:
            raise StorageError(
                "lies on several file systems", field=field, value=str(path),
                next_step="Its folders work/ and artifacts/ must be on one, since what is finished is moved at once",
            ) from error  # fmt: skip
        if number in _NO_WRITE:
            raise StorageError(
                "cannot be written", field=field, value=str(path), allowed="a folder in which this user may write",
                next_step=f"Change its permissions or choose {another}",
            ) from error  # fmt: skip
        raise


def _number(error: OSError) -> int | None:
    """The error's number; shutil packs those of several files into one error that has none, and only their texts tell."""
    told = re.search(r"\[Errno (\d+)\]", str(error)) if isinstance(error, shutil.Error) else None
    return int(told[1]) if told else error.errno


def allow_reading(folder: Path) -> None:
    """Gives the files of a folder the rights that this user gives new files; safetensors writes weights for their owner alone."""
    umask = os.umask(0o022)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | (0o666 & ~umask))


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")


def is_temporary(path: Path) -> bool:
    """Whether it is what `write_atomically` leaves where it is killed, and nobody reads."""
    return _TEMPORARY.fullmatch(path.name) is not None


def write_atomically(path: Path, content: str) -> None:
    """Writes a file that is complete or not there, even when the machine stops in between."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # process ids are the same in many pods
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk needs its room back
        raise


def sync(folder: Path) -> None:
    """Brings a folder and all in it to the disk, before a rename after which nobody looks whether the files are whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

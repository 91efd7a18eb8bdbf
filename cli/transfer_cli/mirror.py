"""`transfer evaluate fetch`: fills a mirror with the data sets that suites read, each at one commit.

The commit is the task file's where it names one, else what is newest when the data set is first fetched; from then on it stays. The list of
files is written before the files are, so an interrupted fetch is known for what it is, and goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from transfer_api.errors import DataError
from transfer_evaluator.mirror import FIELD, Mirror, RepositoryFile, download
from transfer_pod.artifact import sha256, storage_errors, write_atomically
from transfer_pod.hub import HubUnreachableError, hub_error

T = TypeVar("T")
PASSED_OVER = (".gitattributes",)


def fill(mirror: Mirror, data_sets: dict[str, str | None], say: Callable[[str], None]) -> None:
    """Fetches what a mirror lacks or has damaged of some data sets.

    Args:
        mirror: to be filled; the folder is made where it is not there.
        data_sets: name to the commit that is asked for, or None for the newest.
        say: told of each data set when it is whole.

    Raises:
        DataError: the hub refuses a data set or does not answer, or sends other files than it lists.
        StorageError: the folder cannot be written.
    """
    for name, revision in sorted(data_sets.items()):
        with storage_errors(mirror.folder, field="--mirror", option="--mirror"):
            try:
                count, size, fetched = _fetch(mirror, name, revision)
            except HubUnreachableError as error:
                raise DataError(
                    f"cannot be fetched now: {error}", field="SUITE", value=name, next_step="Try again; what was fetched is kept"
                ) from error
        say(f"{mirror.source(name)}: {count} files, {size / 1e6:,.1f} MB, {f'{fetched} fetched' if fetched else 'all there already'}")


def fill_files(mirror: Mirror, files: Iterable[RepositoryFile], say: Callable[[str], None]) -> None:
    """Fetches what a mirror lacks or has damaged of repositories' files. Their commit is part of their name, so it never moves.

    Raises:
        DataError: a file is not there, its repository does not answer, or the mirror has the repository at another commit.
        StorageError: the folder cannot be written.
    """
    by_repository: dict[str, list[RepositoryFile]] = {}
    for file in files:
        by_repository.setdefault(file.name, []).append(file)
    for name, wanted in sorted(by_repository.items()):
        with storage_errors(mirror.folder, field="--mirror", option="--mirror"):
            record = mirror.record(name) or {"revision": wanted[0].revision, "files": {}}
            if other := next((file for file in wanted if file.revision != record["revision"]), None):
                raise _other_commit(name, record["revision"], other.revision)
            listed = record["files"]
            lacking = [
                file for file in wanted if file.path not in listed or not _is_whole(mirror.folder / name / file.path, listed[file.path])
            ]
            for file in lacking:
                try:
                    content = download(file, "SUITE")
                except HubUnreachableError as error:
                    raise DataError(
                        f"cannot be fetched now: {error}", field="SUITE", value=name, next_step="Try again; what was fetched is kept"
                    ) from error
                place = mirror.folder / name / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
                listed[file.path] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                write_atomically(mirror.folder / f"{name}.json", json.dumps(record, indent=1))
        size = sum(listed[file.path]["size"] for file in wanted)
        told = f"{len(lacking)} fetched" if lacking else "all there already"
        say(f"{mirror.source(name)}: {len(wanted)} files, {size / 1e6:,.1f} MB, {told}")


def _other_commit(name: str, found: str, wanted: str) -> DataError:
    return DataError(
        f"has {name} at another commit than the task asks for", field=FIELD, value=found, allowed=wanted,
        next_step="Fill another folder: what is in a mirror does not change",
    )  # fmt: skip


def _fetch(mirror: Mirror, name: str, revision: str | None) -> tuple[int, int, int]:
    """Files of a data set, their bytes, and how many had to be fetched."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))
    record = mirror.record(name) or _listed(api, mirror, name, revision)
    if revision is not None and record["revision"] != revision:
        raise _other_commit(name, record["revision"], revision)
    place = mirror.folder / name
    wanted = [file for file, entry in record["files"].items() if not _is_whole(place / file, entry)]
    for file in wanted:
        settings = {"repo_type": "dataset", "revision": record["revision"], "local_dir": place, "force_download": (place / file).exists()}
        _from_hub(name, functools.partial(api.hf_hub_download, name, file, **settings))
        if not _is_whole(place / file, record["files"][file]):
            raise DataError(
                f"{file} is not what the hub lists", field="SUITE", value=name, next_step="Try again; if it stays, the hub is at fault"
            )
    shutil.rmtree(place / ".cache", ignore_errors=True)  # notes of the hub's library
    files = {file: {"size": entry["size"], "sha256": sha256(place / file)} for file, entry in record["files"].items()}
    write_atomically(mirror.folder / f"{name}.json", json.dumps({"revision": record["revision"], "files": files}, indent=1))
    return len(files), sum(entry["size"] for entry in files.values()), len(wanted)


def _listed(api: Any, mirror: Mirror, name: str, revision: str | None) -> dict[str, Any]:
    """The files of a data set as the hub lists them, written into the mirror's record."""
    commit = _from_hub(name, lambda: api.repo_info(name, repo_type="dataset", revision=revision).sha)
    tree = _from_hub(name, lambda: list(api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")))
    files = {
        entry.path: {"size": entry.size, **({"sha256": entry.lfs.sha256} if entry.lfs else {"blob": entry.blob_id})}
        for entry in tree
        if hasattr(entry, "blob_id") and entry.path not in PASSED_OVER
    }
    record = {"revision": commit, "files": files}
    path = mirror.folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1))
    return record


def _from_hub(name: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception as error:  # each HTTP client of the hub's library has errors of its own
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of this machine
        step = "Check the name; a gated data set needs HF_TOKEN, and its terms accepted on its page"
        raise hub_error(error, DataError, "SUITE", name, step) from error


def _is_whole(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file is the one that is listed: by its SHA-256, or by the hash that git gives it."""
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    if "sha256" in entry:
        return bool(sha256(path) == entry["sha256"])
    content = path.read_bytes()
    return bool(hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == entry["blob"])


def data_sets_of(suites: Iterable[str], folders: Iterable[str]) -> tuple[dict[str, str | None], list[RepositoryFile]]:
    """Data sets of the hub that suites read, with the commits that their task files ask for, and files of repositories.

    Raises:
        SpecError: a suite does not exist.
    """
    from transfer_api.spec import GAOKAO_OPEN, is_harness_suite
    from transfer_evaluator.judge.exam import exam_files
    from transfer_evaluator.tasks import TaskLibrary, quiet

    quiet()
    asked = list(suites)
    library, tasks = TaskLibrary([Path(folder) for folder in folders]), list(filter(is_harness_suite, asked))
    return library.data_sets(tasks), [*library.files(tasks), *(exam_files().values() if GAOKAO_OPEN in asked else ())]

"""A folder with the data sets that tasks read, for machines without network.

    <mirror>/<owner>/<name>/...         the files of one data set repository, as the hub has them; of one on GitHub those that are read
    <mirror>/<owner>/<name>.json        its commit, and size and SHA-256 of each file

A data set in a mirror never changes: whoever wants a newer commit makes another mirror. So its path says what was read.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_api.errors import DataError
from transfer_pod.hub import hub_error

FIELD = "spec.evaluation.mirror"
SHOWN = 20
"""Most missing files that a message names."""
TIMEOUT_SECONDS = 60
RAW = "https://raw.githubusercontent.com"
_ADDRESS = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)/(?P<revision>[0-9a-f]{40})/(?P<path>.+)", re.ASCII)


@dataclass(frozen=True)
class RepositoryFile:
    """A file of a public repository on GitHub, for data that no hub has."""

    name: str
    """OWNER/NAME."""
    revision: str
    path: str

    @property
    def address(self) -> str:
        """Where it is read."""
        return f"{RAW}/{self.name}/{self.revision}/{self.path}"

    @property
    def source(self) -> str:
        """Repository and the beginning of its commit, for the record of a score."""
        return f"{self.name}@{self.revision[:8]}"


def repository_file(address: Any) -> RepositoryFile | None:
    """The file that an address in a task names; None where it is of another kind."""
    found = _ADDRESS.fullmatch(address.removeprefix(f"{RAW}/")) if isinstance(address, str) and address.startswith(f"{RAW}/") else None
    return RepositoryFile(found["name"], found["revision"], found["path"]) if found else None


@dataclass(frozen=True)
class Mirror:
    """One mirror."""

    folder: Path

    def record(self, name: str) -> dict[str, Any] | None:
        """What `transfer evaluate fetch` wrote of a data set: `revision` and `files`; None where it wrote nothing.

        Raises:
            DataError: it cannot be read.
        """
        path = self.folder / f"{name}.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content["revision"], str) or not all(isinstance(one["size"], int) for one in content["files"].values()):
                raise ValueError("no revision, or a file without a size")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"has an unreadable record of a data set: {error}",
                field=FIELD,
                value=str(path),
                next_step=f"Remove it. {fetch_step(self.folder)}",
            ) from error
        return content

    def missing(self, name: str) -> list[str]:
        """Files of a data set that are not there, or are cut short."""
        record = self.record(name) or {"files": {}}
        place = self.folder / name
        return [file for file, entry in record["files"].items() if _size(place / file) != entry["size"]]

    def place(self, name: str) -> Path:
        """Folder of a data set, all of whose files are there.

        Raises:
            DataError: the mirror does not have it, or lacks files of it, which the message names.
        """
        if self.record(name) is None:
            raise DataError(f"has no data set {name}", field=FIELD, value=str(self.folder), next_step=fetch_step(self.folder))
        if absent := self.missing(name):
            more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
            raise DataError(
                f"lacks {len(absent)} files of {name}: {', '.join(absent[:SHOWN])}{more}", field=FIELD, value=str(self.folder),
                next_step=fetch_step(self.folder),
            )  # fmt: skip
        return self.folder / name

    def file(self, wanted: RepositoryFile) -> Path:
        """A file of a repository, with all others that were fetched of it.

        Raises:
            DataError: the mirror does not have it, or has it at another commit.
        """
        place = self.place(wanted.name) / wanted.path
        record = self.record(wanted.name) or {}
        if record.get("revision") != wanted.revision or wanted.path not in record["files"]:
            raise DataError(
                f"has no file {wanted.path} of {wanted.source}", field=FIELD, value=str(self.folder),
                next_step=fetch_step(self.folder),
            )  # fmt: skip
        return place

    def source(self, name: str) -> str:
        """Data set and the beginning of its commit, for the record of a score."""
        return f"{name}@{(self.record(name) or {'revision': 'unknown'})['revision'][:8]}"


def download(file: RepositoryFile, field: str) -> bytes:
    """The content of a repository's file.

    Raises:
        DataError: it is not there, or the network is not to be used.
        HubUnreachableError: the repository does not answer.
    """
    step = "Give a mirror that has it, or allow network access"
    try:
        with urllib.request.urlopen(file.address, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - begins with RAW
            content: bytes = answer.read()
    except urllib.error.HTTPError as error:
        raise hub_error(error, DataError, field, file.source, step) from error
    except (OSError, http.client.HTTPException) as error:
        raise hub_error(ConnectionError(f"{file.address}: {error}"), DataError, field, file.source, step) from error
    return content


def fetch_step(folder: Path) -> str:
    """How a mirror is filled."""
    return f"Run `transfer evaluate fetch SUITE --mirror {folder}` where there is network; it fetches only what is missing"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None

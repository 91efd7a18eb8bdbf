"""Data files by address: `s3://bucket/texts/*.jsonl.gz`, `gs://…`, `https://…`.

S3 and Google's storage are read by pyarrow's own clients (in C++, with read-ahead; pyarrow is here for Parquet anyway), so s3fs with
aiobotocore and its pinned botocore is not needed. Only https goes through fsspec, which `datasets` brings.

Credentials come from the pod's environment, by the names that every S3 client reads (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL), or from the machine's role. They are in no file of ours and in no message.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from transfer_api.errors import DataError
from transfer_pod.hub import HubUnreachableError

SCHEMES = ("s3", "gs", "https")
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_READ_AHEAD = 4 * 1024 * 1024
_REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH|INVALID_|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|[Ff]orbidden|\b(400|401|403|404)\b"
)
_WAY_OUT = "Check address, region and credentials (spec.dataSecret on a cluster, AWS_… in the environment here)"


@dataclass(frozen=True)
class RemoteFile:
    """One file behind an address; to the readers it is what a `Path` is."""

    address: str
    size: int
    modified: int
    """Nanoseconds; 0 where the server does not tell."""

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(self.address).name

    @property
    def suffix(self) -> str:
        """Its ending."""
        return PurePosixPath(self.address).suffix

    def open(self) -> IO[bytes]:
        """A stream that can be moved in."""
        system, place = _system(self.address)
        with _errors(self.address, "path"):
            return _Stream(system.open_input_file(place), self.address)


class _Stream(io.BufferedReader):
    """Reads ahead, and tells a server's refusal in our words wherever it comes."""

    def __init__(self, raw: Any, address: str) -> None:
        super().__init__(raw, _READ_AHEAD)
        self._address = address

    def __next__(self) -> bytes:
        with _errors(self._address, "path"):
            return super().__next__()

    def read(self, size: int | None = -1, /) -> bytes:
        with _errors(self._address, "path"):
            return super().read(size)


def remote_files(address: str, field: str) -> list[RemoteFile]:
    """The files of an address or pattern, in order of name.

    Raises:
        DataError: there is none, the server refuses, or a pattern stands in an https address.
        HubUnreachableError: the server does not answer; to be tried again.
    """
    from pyarrow import fs

    pattern = any(character in address for character in "*?[")
    if pattern and address.startswith("https://"):
        raise DataError(
            "is a pattern, and a web server cannot list its files", field=field, value=address, allowed="an address without * ? [",
            next_step="Name each file as a source of its own",
        )  # fmt: skip
    system, place = _system(address)
    with _errors(address, field):
        if pattern:
            base = place[: re.search(r"[*?\[]", place).start()].rpartition("/")[0]  # type: ignore[union-attr]
            found = system.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        else:
            found = [system.get_file_info(place)]
    scheme = address.partition("://")[0]
    matcher = re.compile(_expression(place))
    files = [
        RemoteFile(address if not pattern else f"{scheme}://{info.path}", info.size or 0, info.mtime_ns or 0)
        for info in found
        if info.type == fs.FileType.File and (not pattern or matcher.fullmatch(info.path))
    ]
    if not files:
        raise DataError("no such file", field=field, value=address, next_step=_WAY_OUT)
    return sorted(files, key=lambda file: file.address)


def _expression(pattern: str) -> str:
    """A glob as a regular expression: * and ? stop at a slash, ** also stands for no folder at all."""
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.findall(r"\*\*/|\*\*|\*|\?|\[!?[^\]]+\]|.", pattern)
    return "".join(wild.get(part) or (part.replace("[!", "[^", 1) if len(part) > 1 else re.escape(part)) for part in parts)


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the place in it."""
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES:
        raise DataError(
            "is an address of an unknown kind", field="path", value=address, allowed=", ".join(f"{known}://" for known in SCHEMES),
            next_step="Put the data into such a storage, or into the experiment's",
        )  # fmt: skip
    return _connect(scheme, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")), (
        address if scheme == "https" else rest
    )


@functools.cache
def _connect(scheme: str, endpoint: str | None) -> Any:
    from pyarrow import fs

    if scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        retries = fs.AwsDefaultS3RetryStrategy(max_attempts=5)
        return fs.S3FileSystem(endpoint_override=endpoint, region=region, retry_strategy=retries, connect_timeout=10, request_timeout=60)
    if scheme == "gs":
        return fs.GcsFileSystem()
    import fsspec

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("https")))


@contextmanager
def _errors(address: str, field: str) -> Iterator[None]:
    """What cannot work as written is a DataError; whatever else the server does may be better in a minute."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("no such file", field=field, value=address, next_step=_WAY_OUT) from error
    except OSError as error:
        words = without_credentials(" ".join(str(error).split())[:300])
        if _REFUSED.search(words):
            raise DataError(f"is refused by the server: {words}", field=field, value=address, next_step=_WAY_OUT) from None
        raise HubUnreachableError(f"{field}: {address} cannot be read now ({words}); tried again") from None


def without_credentials(text: str, names: Sequence[str] = CREDENTIALS) -> str:
    """A text in which no credential of the environment stands; `names` are their variables."""
    for name in names:
        if secret := os.environ.get(name):
            text = text.replace(secret, f"${name}")
    return text

"""Reads texts and instructions from files and hub data sets, one at a time, and says exactly what is wrong with a file.

A corpus may be larger than memory, so everything here is an iterator. Whoever prepared a file sees file, line and field
of what cannot be used; `check_source` asks the same questions of the first lines before anything runs, and nothing heavy
is imported for it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from transfer_api.errors import DataError
from transfer_api.spec import InstructionSource, QuestionSource, TextSource
from transfer_api.stage import is_address
from transfer_pod.context import PodContext, expand, find_input
from transfer_pod.hub import hub_error
from transfer_pod.remote import RemoteFile, remote_files

PARQUET = ".parquet"
OBJECTS = (".jsonl", ".jsonl.gz", ".jsonl.zst", PARQUET)
TEXTS = (".txt", ".txt.gz", ".txt.zst")
ROLES = ("system", "user", "assistant")
Row = dict[str, Any]
T = TypeVar("T")
DataFile = Path | RemoteFile
PART_BYTES = 32_000_000
BROKEN = (OSError, EOFError, zlib.error, ValueError)
"""What reading a file that is cut short or not of its format raises."""
_CHECKED_LINES = 100
_TABLE_ROWS = 1000  # of a Parquet file held as Python objects at once
_DENIED = ("cannot be read: permission denied", "Let this user read it")
_CHECKED_BYTES = 4_000_000  # lines may be whole books
# A NUL or half a surrogate pair is left over from a broken conversion; it means nothing, and half a pair has no UTF-8.
_MEANINGLESS = dict.fromkeys([0, *range(0xD800, 0xE000)])


@dataclass(frozen=True)
class Remote:
    """An address or a pattern of addresses."""

    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    content: str


def iter_documents(source: TextSource, context: PodContext, field: str) -> Iterator[str]:
    """The documents of a source in order, without those that are blank.

    Args:
        source: files (.jsonl, .txt, .gz and .zst of both, .parquet; globs in order of name) or a hub data set.
        context: where relative paths are looked up.
        field: place of the source in the experiment file, such as ``spec.pretraining.mixture[0]``.

    Raises:
        DataError: no file, not UTF-8, not JSON or Parquet, without the field, or without a single document.
    """
    if source.path is not None:
        path = find_data(source.path, context.roots, f"{field}.path")
        yield from _at_least_one(_file_documents(_files(path, OBJECTS + TEXTS, field), source.field, field), path, field, "document")
    else:
        rows = _hub_rows(source, field)
        texts = (text for where, row in rows if (text := _text_of(row, source.field, where, field)).strip())
        yield from _at_least_one(texts, source.hub, field, "document")


@dataclass(frozen=True)
class Part:
    """A piece of a source that is read on its own. The pieces of a source in order are the whole of it."""

    file: str = ""
    """Its file; empty for a hub data set."""
    start: int = 0
    """First byte of a plain .jsonl file, row group of a .parquet file, or file of a hub data set."""
    end: int | None = None
    """The first one after it; None for all there is."""


def parts(source: TextSource, context: PodContext, field: str, size: int = PART_BYTES) -> list[Part]:
    """Cuts a source into pieces of about `size` bytes that depend on nothing but its files.

    Plain .jsonl files are cut between lines and .parquet files between row groups; other files are read from their beginning and
    stay whole, as does each file of a hub data set.

    Raises:
        DataError: no file, an unknown format, or a Parquet file that cannot be read.
    """
    if source.path is None:
        count = _hub_data(source, field).num_shards
        return [Part(start=number, end=number + 1) for number in range(count)]
    path = find_data(source.path, context.roots, f"{field}.path")
    return [part for file in _files(path, OBJECTS + TEXTS, field) for part in _parts_of(file, size, field)]


def find_data(path: str, roots: tuple[Path, ...], field: str) -> Path | Remote:
    """Where the files of a source are: on this machine (`find_input`) or behind an address.

    Raises:
        DataError: there is no such file on this machine; an address is looked up when its files are read.
    """
    return Remote(path) if is_address(path) else find_input(path, roots, field)


def stamp(file: str) -> list[int]:
    """Size and time of the file of a part."""
    if is_address(file):
        found = remote_files(file, "path")[0]
        return [found.size, found.modified]
    facts = Path(file).stat()
    return [facts.st_size, facts.st_mtime_ns]


def _parts_of(file: DataFile, size: int, field: str) -> list[Part]:
    if file.suffix.lower() == PARQUET:
        return [Part(str(file), *span) for span in _Table(file, field).spans(size)]
    if file.suffix.lower() != ".jsonl":
        return [Part(str(file))]
    starts = range(0, max(1, file.size if isinstance(file, RemoteFile) else file.stat().st_size), size)
    return [Part(str(file), start, start + size) for start in starts]


def iter_part(source: TextSource, part: Part, field: str) -> Iterator[str]:
    """The documents of one piece, as `iter_documents` gives them; there may be none.

    Raises:
        DataError: as `iter_documents`.
    """
    if part.file:
        file = remote_files(part.file, f"{field}.path")[0] if is_address(part.file) else Path(part.file)
        yield from _documents_of(_open(file, field, part=part), source.field, field)
        return
    for where, row in _hub_rows(source, field, part):
        if (text := _text_of(row, source.field, where, field)).strip():
            yield text


def no_document(source: TextSource, context: PodContext, field: str) -> DataError:
    """The error of a source whose pieces have no document."""
    return _nothing(find_data(source.path, context.roots, f"{field}.path") if source.path is not None else source.hub, field, "document")


def iter_instructions(source: InstructionSource, context: PodContext, field: str) -> Iterator[list[Message]]:
    """The conversations of a source in order.

    Either form is read, object by object: ``instruction``, ``input`` (may lack or be empty) and ``output``; or ``messages``, a
    list of ``role`` and ``content``. An input follows its instruction on a new line, as Chinese-LLaMA-Alpaca joins them.

    Raises:
        DataError: as `iter_documents`, or a line that has neither form.
    """
    if source.path is not None:
        path = find_data(source.path, context.roots, f"{field}.path")
        files = _files(path, OBJECTS, field)
        found = (_conversation(row, where, f"{field}.path") for file in files for where, row in _objects(_open(file, field)))
        yield from _at_least_one(found, path, field, "instruction")
    else:
        rows = _hub_rows(source, field)
        yield from _at_least_one((_conversation(row, where, f"{field}.hub") for where, row in rows), source.hub, field, "instruction")


def iter_rows(source: QuestionSource, context: PodContext, field: str) -> Iterator[tuple[str, Row]]:
    """The objects of a source in order, each with the place that an error names.

    Raises:
        DataError: no file, not UTF-8, not JSON or Parquet, or without a single object.
    """
    if source.path is not None:
        path = find_data(source.path, context.roots, f"{field}.path")
        rows = (row for file in _files(path, OBJECTS, field) for row in _objects(_open(file, field)))
        found = _at_least_one(rows, path, field, "row")
    else:
        found = _at_least_one(_hub_rows(source, field), source.hub, field, "row")
    yield from ((str(place), row) for place, row in found)


def check_source(path: Path | Remote, field_name: str | None, spec_field: str) -> None:
    """Reads the first lines of every file of a source, so that a wrong file is refused before anything runs.

    Args:
        path: file, glob or address (`find_data`).
        field_name: field that holds the text; None for instructions.
        spec_field: place of the source in the experiment file.

    Raises:
        DataError: what reading all of it would raise, as far as the first lines show it.
    """
    files = _files(path, OBJECTS if field_name is None else OBJECTS + TEXTS, spec_field)
    found, complete = False, True
    for file in files:
        opened = _open(file, spec_field, checked_only=True)
        if field_name is None:
            items: Iterator[Any] = (_conversation(row, where, f"{spec_field}.path") for where, row in _objects(opened))
        else:
            items = _documents_of(opened, field_name, spec_field)
        found = sum(1 for _ in items) > 0 or found
        complete = complete and opened.complete
    if complete and not found:
        raise _nothing(path, spec_field, "instruction" if field_name is None else "document")


def count_rows(file: Path, *, strict: bool = False) -> int:
    """Rows of a Parquet file, else lines that are not blank; a broken file counts as far as it can be read, or raises one of `BROKEN`."""
    count = 0
    with contextlib.nullcontext() if strict else contextlib.suppress(*BROKEN):
        if file.suffix.lower() == PARQUET:
            from pyarrow import parquet

            return int(parquet.read_metadata(file).num_rows)
        with _unpacked(file) as lines:
            for line in lines:
                count += bool(line.strip())
    return count


def _unpacked(file: DataFile) -> IO[bytes]:
    match file.suffix.lower():
        case ".gz":
            return gzip.open(file.open() if isinstance(file, RemoteFile) else file, "rb")  # type: ignore[return-value]
        case ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(file.open() if isinstance(file, RemoteFile) else file, compression="zstd"))
        case _:
            return file.open() if isinstance(file, RemoteFile) else file.open("rb")


def _files(path: Path | Remote, endings: tuple[str, ...], field: str) -> list[DataFile]:
    """The files of a path, glob or address, whose endings say how they are read."""
    files: list[DataFile] = list(remote_files(path.address, f"{field}.path") if isinstance(path, Remote) else expand(path))
    for file in files:
        if isinstance(file, Path) and file.is_dir():
            raise DataError(
                "is a folder", field=f"{field}.path", value=str(file), allowed="a file or a glob",
                next_step=f"Write which files of it, such as {path}/*.jsonl",
            )  # fmt: skip
        if not file.name.lower().endswith(endings):
            raise DataError(
                "has an unknown format", field=f"{field}.path", value=str(file), allowed=", ".join(endings),
                next_step="Convert it (a JSON list: jq -c '.[]' data.json > data.jsonl) or give it the ending of what it is",
            )  # fmt: skip
    return files


def _at_least_one(items: Iterator[T], path: Path | Remote | str | None, field: str, noun: str) -> Iterator[T]:
    count = 0
    for item in items:
        count += 1
        yield item
    if not count:
        raise _nothing(path, field, noun)


def _nothing(path: Path | Remote | str | None, field: str, noun: str) -> DataError:
    empty = isinstance(path, Path) and path.is_file() and path.stat().st_size == 0
    return DataError(
        "is empty" if empty else f"has no {noun}: nothing but blank lines or empty texts",
        field=f"{field}.path" if isinstance(path, (Path, Remote)) else f"{field}.hub", value=str(path),
        next_step=f"Put at least one {noun} into it, or remove the source",
    )  # fmt: skip


class _File:
    """A file of a source. With `checked_only` it is read as far as a look at it goes."""

    def __init__(self, path: DataFile, field: str, *, checked_only: bool = False, part: Part | None = None) -> None:
        self.path = path
        self.field = field
        self.part = part or Part()
        self.complete = True
        """False once reading stopped before the end of the file."""
        self._checked_only = checked_only

    def wrong(self, problem: str, next_step: str) -> DataError:
        """The error that names this file."""
        return DataError(problem, field=f"{self.field}.path", value=str(self.path), next_step=next_step)


def _open(path: DataFile, field: str, *, checked_only: bool = False, part: Part | None = None) -> _Lines | _Table:
    kind = _Table if path.suffix.lower() == PARQUET else _Lines
    return kind(path, field, checked_only=checked_only, part=part)


class _Table(_File):
    """A Parquet file."""

    def rows(self, column: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Its rows, or of each only one column where there is such a one; with the place that an error names."""
        from pyarrow import parquet

        number = 0
        with self._errors(lambda: number), parquet.ParquetFile(self._content()) as file:
            number = sum(file.metadata.row_group(group).num_rows for group in range(self.part.start))
            first = number
            columns = [column] if column in file.schema_arrow.names else None
            groups = list(range(self.part.start, file.num_row_groups if self.part.end is None else self.part.end))
            size = _CHECKED_LINES if self._checked_only else _TABLE_ROWS
            for batch in file.iter_batches(batch_size=size, columns=columns, row_groups=groups):
                if self._checked_only and number > first:
                    self.complete = False
                    return
                for row in batch.to_pylist():
                    number += 1
                    yield f"{self.path}, row {number}", row

    def spans(self, size: int) -> Iterator[tuple[int, int]]:
        """First row group and the one after the last, of pieces of at least `size` bytes."""
        from pyarrow import parquet

        with self._errors(lambda: 0), parquet.ParquetFile(self._content()) as file:
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
        start = read = 0
        for group, more in enumerate(sizes):
            read += more
            if read >= size or group == len(sizes) - 1:
                yield start, group + 1
                start, read = group + 1, 0

    def _content(self) -> Path | IO[bytes]:
        return self.path.open() if isinstance(self.path, RemoteFile) else self.path

    @contextlib.contextmanager
    def _errors(self, row: Callable[[], int]) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except PermissionError as error:
            raise self.wrong(*_DENIED) from error
        except pa.ArrowException as error:
            raise self.wrong(f"cannot be read as Parquet after row {row()}: {error}", "Write or fetch it again") from error


class _Lines(_File):
    """The lines of a file as text without their ends, each with its number; errors name line and byte."""

    def __iter__(self) -> Iterator[tuple[int, str]]:
        read = 0
        try:
            with _unpacked(self.path) as file:
                place = self._skip_to_start(file)
                for number, line in enumerate(file, start=1):
                    if self._checked_only and (number > _CHECKED_LINES or read > _CHECKED_BYTES):
                        self.complete = False
                        return
                    if self.part.end is not None and place + read >= self.part.end:
                        return
                    read += len(line)
                    yield number, self._decode(number, line)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self.wrong(f"is not a complete gzip file: {error}", "Compress it again, or drop .gz from a plain file's name") from error
        except PermissionError as error:
            raise self.wrong(*_DENIED) from error
        except OSError as error:
            if error.errno is not None:  # of the disk; those of Arrow's decompression have no number
                raise
            raise self.wrong(f"is not a complete zstd file: {error}", "Compress it again, or drop .zst from a plain file's name") from error

    def _skip_to_start(self, file: IO[bytes]) -> int:
        """Goes to the first line that begins in the piece; returns where that is. The line before belongs to the piece before."""
        if not self.part.start:
            return 0
        return file.seek(self.part.start - 1) + len(file.readline())

    def line(self, number: int) -> int:
        """Number in the whole file of a line of the piece."""
        if not self.part.start:
            return number
        with _unpacked(self.path) as file:
            place = self._skip_to_start(file)
            file.seek(0)
            left, before = place, 0
            while block := file.read(min(left, 1 << 20)):
                left, before = left - len(block), before + block.count(b"\n")
        return before + number

    def _decode(self, number: int, line: bytes) -> str:
        if number == 1 and not self.part.start:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise self.wrong("is UTF-16, not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise self.wrong(
                f"is not UTF-8: line {self.line(number)}, byte {error.start + 1} is 0x{line[error.start]:02x}",
                "Convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8",
            ) from error


def _file_documents(files: list[DataFile], name: str, field: str) -> Iterator[str]:
    for file in files:
        yield from _documents_of(_open(file, field), name, field)


def _documents_of(file: _Lines | _Table, name: str, field: str) -> Iterator[str]:
    if isinstance(file, _Lines) and file.path.name.lower().endswith(TEXTS):
        yield from _parted_by_blank_lines(file)
        return
    for where, row in _objects(file, name):
        text = _text_of(row, name, where, field)
        if text.strip():
            yield text


def _parted_by_blank_lines(lines: _Lines) -> Iterator[str]:
    document: list[str] = []
    for _, line in lines:
        line = line.translate(_MEANINGLESS) if "\0" in line else line
        if line.strip():
            document.append(line)
        elif document:
            yield "\n".join(document)
            document = []
    if document:
        yield "\n".join(document)


def _objects(file: _Lines | _Table, name: str | None = None) -> Iterator[tuple[object, dict[str, Any]]]:
    """The objects of a file, each with the place that an error names; blank lines are passed over.

    Args:
        file: JSON Lines or Parquet.
        name: of the one field that is wanted, where it is one.
    """
    if isinstance(file, _Table):
        yield from file.rows(name)
        return
    for number, line in file:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise file.wrong(f"line {file.line(number)} is not JSON: {error}", "Write one JSON object a line") from error
        if not isinstance(row, dict):
            problem = f"line {file.line(number)} is not a JSON object but {_kind(row)}"
            raise file.wrong(problem, 'Write one object a line, such as {"text": "…"}')
        yield _Place(file, number), row


@dataclass(frozen=True)
class _Place:
    """Where an object stands. Written out only for an error: to number a line, all before it are counted."""

    file: _Lines
    number: int

    def __str__(self) -> str:
        return f"{self.file.path}, line {self.file.line(self.number)}"


def _hub_rows(
    source: TextSource | InstructionSource | QuestionSource, field: str, part: Part | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a hub data set or of one file of it, streamed: nothing is downloaded beyond what is read."""
    data = _hub_data(source, field)
    place = source.hub if part is None else f"{source.hub}, file {part.start}"
    with _hub_errors(source, field):
        rows = iter(data if part is None else data.shard(num_shards=data.num_shards, index=part.start))
    number = 0
    while True:
        with _hub_errors(source, field):
            row = next(rows, None)
        if row is None:
            return
        yield f"{place}, row {number}", row
        number += 1


def _hub_data(source: TextSource | InstructionSource | QuestionSource, field: str) -> Any:
    import datasets

    with _hub_errors(source, field):
        return datasets.load_dataset(
            source.hub, source.subset, split=source.split, revision=source.revision, streaming=True, token=os.environ.get("HF_TOKEN")
        )


@contextlib.contextmanager
def _hub_errors(source: TextSource | InstructionSource | QuestionSource, field: str) -> Iterator[None]:
    assert source.hub is not None
    try:
        yield
    except Exception as error:  # of this library, of its HTTP clients, of the readers of a dozen formats
        way_out = "Check hub, subset, split and revision; a gated data set needs HF_TOKEN"
        raise hub_error(error, DataError, f"{field}.hub", source.hub, way_out) from error


def _text_of(row: dict[str, Any], name: str, where: object, field: str) -> str:
    if name not in row:
        raise DataError(
            f"{where} has no such field", field=f"{field}.field", value=name, allowed=", ".join(sorted(row)) or "nothing: it has no field",
            next_step="Name the field that holds the text",
        )  # fmt: skip
    return _string(row[name], name, where, f"{field}.field")


def _string(value: object, name: str, where: object, field: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{where}: field {name} is {_kind(value)}, not a text", field=field, value=value, allowed="a string",
            next_step="Name another field, or correct the line",
        )  # fmt: skip
    return value.translate(_MEANINGLESS) if _has_meaningless(value) else value


def _has_meaningless(text: str) -> bool:
    if "\0" in text:
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _conversation(row: dict[str, Any], where: object, place: str) -> list[Message]:
    if isinstance(row.get("messages"), list):
        return _messages(row["messages"], where, place)
    for name in ("instruction", "output"):
        if name not in row:
            raise DataError(
                f"{where} has no field {name}", field=place, value=", ".join(sorted(row)),
                allowed="instruction, input and output; or messages", next_step="Rename the fields of the data",
            )  # fmt: skip
    question = _string(row["instruction"], "instruction", where, place)
    extra = _string(row.get("input") or "", "input", where, place)
    if extra.strip():
        question = f"{question}\n{extra}"
    return [Message("user", question), Message("assistant", _string(row["output"], "output", where, place))]


def _messages(values: list[Any], where: object, place: str) -> list[Message]:
    messages = []
    for number, value in enumerate(values):
        if not isinstance(value, dict) or value.get("role") not in ROLES:
            raise DataError(
                f"{where}: messages[{number}] has no role", field=place, value=value, allowed=", ".join(ROLES),
                next_step='Write messages as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
            )  # fmt: skip
        messages.append(Message(value["role"], _string(value.get("content"), f"messages[{number}].content", where, place)))
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            f"{where}: no message is the assistant's, so there is nothing to learn", field=place,
            next_step="Add the answer, or remove the line",
        )  # fmt: skip
    return messages


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)

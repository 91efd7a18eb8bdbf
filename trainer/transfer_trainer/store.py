"""Packed rows on disk, as the training loop maps them into memory.

    rows/index.json      what is there: row length, seed, tokenizer, and one entry for each source
    rows/<i>.tokens      uint32 little-endian [N, T]
    rows/<i>.positions   int32  little-endian [N, T]: place in the document, 0 where one begins
    rows/<i>.targets     uint8 [N, T]: 1 where the token is to be predicted (from the logits one place to its left)

Rows of one length and raw arrays make row `n` a plain offset: reading any row costs one page fault, and any number of
workers share the page cache. The index is written last.

Letters: N = rows of a source, B = rows asked for, T = tokens in a row.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from transfer_api.errors import ArtifactError
from transfer_pod.artifact import write_atomically

INDEX = "index.json"
TOKENS, POSITIONS, TARGETS = np.dtype("<u4"), np.dtype("<i4"), np.dtype("u1")
_COLUMNS: dict[str, np.dtype[Any]] = {"tokens": TOKENS, "positions": POSITIONS, "targets": TARGETS}
_REMAKE = "Remove the artifact's folder to have it made again"


@dataclass(frozen=True)
class SourceIndex:
    """What is known of one source without reading its rows."""

    name: str
    weight: int
    rows: int
    tokens: int
    """Real tokens: padding is not counted."""
    targets: int
    """Tokens that count in the loss."""
    documents: int
    bytes: int
    """UTF-8 bytes of the texts."""


@dataclass(frozen=True)
class Rows:
    """Rows in memory, copies of what is on disk."""

    tokens_BT: npt.NDArray[np.uint32]
    positions_BT: npt.NDArray[np.int32]
    targets_BT: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PackedRow:
    """One row on its way to the disk; `used` of its tokens are real, the rest is padding."""

    tokens_T: npt.NDArray[np.uint32]
    positions_T: npt.NDArray[np.int32]
    targets_T: npt.NDArray[np.uint8]
    used: int


class RowStore:
    """Rows of a finished data set, read at random."""

    def __init__(
        self, sequence_length: int, tokenizer: str, sources: list[SourceIndex], columns: list[dict[str, npt.NDArray[Any]]]
    ) -> None:
        self.sequence_length = sequence_length
        self.tokenizer = tokenizer
        """SHA-256 of the tokenizer.json that made the tokens."""
        self.sources = sources
        self._columns = columns

    @classmethod
    def open(cls, folder: Path) -> RowStore:
        """Maps the rows of a folder.

        Raises:
            ArtifactError: no index, or a file whose size is not what the index says.
        """
        path = folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            length, tokenizer = int(index["sequence_length"]), str(index["tokenizer"])
            sources = [SourceIndex(**entry) for entry in index["sources"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is not a readable index: {error}", next_step=_REMAKE) from error
        columns = [
            {name: _map(folder / f"{number}.{name}", dtype, (source.rows, length)) for name, dtype in _COLUMNS.items()}
            for number, source in enumerate(sources)
        ]
        return cls(length, tokenizer, sources, columns)

    @property
    def padding_ratio(self) -> float:
        """Share of the tokens that are padding, as the sources are drawn: by their weights."""
        drawn = [source for source in self.sources if source.weight and source.rows]
        real = sum(source.weight * source.tokens / (source.rows * self.sequence_length) for source in drawn)
        return 1 - real / sum(source.weight for source in drawn) if drawn else 0.0

    def row(self, source: int, rows: npt.NDArray[np.integer[Any]]) -> Rows:
        """Rows of one source, in the order asked for; `rows` holds integers [B]."""
        columns = self._columns[source]
        return Rows(*(np.array(columns[name][rows]) for name in _COLUMNS))


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    expected = shape[0] * shape[1] * dtype.itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size} bytes instead of {expected}"
        raise ArtifactError(f"{path} {found}", next_step=_REMAKE)
    if not expected:
        return np.empty(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, mode="r", shape=shape)


class RowWriter:
    """Writes a row store, source after source; nothing but counts stays in memory.

    Args:
        folder: made by the writer; must not exist.
        sequence_length: tokens in a row.
        seed: of the experiment.
        tokenizer: SHA-256 of tokenizer.json.
    """

    def __init__(self, folder: Path, *, sequence_length: int, seed: int, tokenizer: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._head = {"sequence_length": sequence_length, "seed": seed, "tokenizer": tokenizer}
        self._sources: list[SourceIndex] = []

    def source(self, name: str, weight: int) -> SourceWriter:
        """Begins the next source; to be used as a context manager, one at a time."""
        stem = self._folder / str(len(self._sources))
        return SourceWriter(stem, SourceIndex(name, weight, 0, 0, 0, 0, 0), self._sources)

    def finish(self) -> list[SourceIndex]:
        """Writes the index, which makes the store complete, and returns its sources."""
        index = {**self._head, "sources": [dataclasses.asdict(source) for source in self._sources]}
        write_atomically(self._folder / INDEX, json.dumps(index, indent=1, ensure_ascii=False))
        return self._sources


class SourceWriter:
    """Appends the rows of one source."""

    def __init__(self, stem: Path, index: SourceIndex, finished: list[SourceIndex]) -> None:
        self.index = index
        self._stem = stem
        self._finished = finished
        self._files: dict[str, IO[bytes]] = {}

    def __enter__(self) -> SourceWriter:
        self._files = {name: self._stem.with_name(f"{self._stem.name}.{name}").open("wb") for name in _COLUMNS}
        return self

    def append(self, row: PackedRow) -> None:
        """Writes one row."""
        arrays = (row.tokens_T, row.positions_T, row.targets_T)
        for (name, dtype), array in zip(_COLUMNS.items(), arrays, strict=True):
            self._files[name].write(np.ascontiguousarray(array, dtype).tobytes())
        self._add(rows=1, tokens=row.used, targets=int(row.targets_T.sum()))

    def append_rows(self, rows: Rows, used: int | None = None) -> None:
        """Writes many rows at once.

        Args:
            rows: B of them.
            used: their real tokens; None where none is padding.
        """
        for (name, dtype), array in zip(_COLUMNS.items(), (rows.tokens_BT, rows.positions_BT, rows.targets_BT), strict=True):
            self._files[name].write(np.ascontiguousarray(array, dtype).data)
        self._add(rows=len(rows.tokens_BT), tokens=rows.tokens_BT.size if used is None else used, targets=int(rows.targets_BT.sum()))

    def count(self, *, documents: int, bytes: int) -> None:
        """Adds to the counts that rows do not show."""
        self._add(documents=documents, bytes=bytes)

    def _add(self, **more: int) -> None:
        self.index = dataclasses.replace(self.index, **{name: getattr(self.index, name) + value for name, value in more.items()})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        if error is None:
            self._finished.append(self.index)

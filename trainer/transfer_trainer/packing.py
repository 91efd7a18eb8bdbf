"""Puts documents of many lengths into rows of one length.

Texts (`pack_stream`) are laid end to end and cut every T tokens: no token is padding but in the last row. What a cut parts
goes on in the next row as if it were a document of its own, positions from 0: rows are shuffled, so the model never sees
the left part there, and positions must count what it does see.

Instructions (`pack_whole`) are never cut in two, because an answer without its question teaches nothing; they are placed by
best fit into a bounded number of open rows.

The first token of every piece is no target: nothing in its row predicts it. Everything here is pure and deterministic.

Letters: T = tokens in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from transfer_trainer.store import POSITIONS, TARGETS, TOKENS, PackedRow, Rows

OPEN_ROWS = 64  # log-normal lengths, means 80 to 300 in rows of 512 or 2048: 98 to 99 % filled, and more open rows fill no more


@dataclass(frozen=True)
class Example:
    """A tokenised conversation; `targets` is 1 where a token belongs to an answer."""

    tokens: Sequence[int]
    targets: Sequence[int]


def pack_stream(documents: Iterable[Sequence[int]], length: int, padding: int) -> Iterator[PackedRow]:
    """Rows of exactly `length` tokens from documents laid end to end; the last one is filled up with `padding`."""
    row = _Row(length, padding)
    for document in documents:
        start = 0
        while start < len(document):
            piece = document[start : start + row.space]
            row.add(piece)
            start += len(piece)
            if not row.space:
                yield row.pack()
                row = _Row(length, padding)
    if row.used:
        yield row.pack()


class StreamPacker:
    """`pack_stream` for tokens that are in memory already: the same rows, a hundred times as fast.

    Args:
        length: tokens in a row.
        padding: token that fills the last row.
    """

    def __init__(self, length: int, padding: int) -> None:
        self._length = length
        self._padding = padding
        self._rest = np.empty(0, TOKENS)
        self._starts = np.empty(0, np.int64)

    def add(self, tokens_L: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64]) -> Rows:
        """The rows that are full after these tokens; `starts` has the places in them where a document begins, in order."""
        starts = np.concatenate([self._starts, starts + len(self._rest)])
        tokens = np.concatenate([self._rest, tokens_L])
        full = len(tokens) // self._length * self._length
        self._rest, self._starts = tokens[full:], starts[starts >= full] - full
        return self._rows(tokens[:full], starts[starts < full])

    def finish(self) -> tuple[Rows, int]:
        """The last row, filled up, and how many of its tokens are real; no row where none is left."""
        used = len(self._rest)
        if not used:
            return self._rows(self._rest, self._starts), 0
        padded = np.concatenate([self._rest, np.full(self._length - used, self._padding, TOKENS)])
        rows = self._rows(padded, np.append(self._starts, used) if used < self._length else self._starts)
        rows.targets_BT[0, used:] = 0
        return rows, used

    def _rows(self, tokens: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64]) -> Rows:
        """Whole rows; a piece begins with a document or a row, positions count from there, and its first token is no target."""
        begins = np.zeros(len(tokens), np.int64)
        begins[starts] = starts
        begins[:: self._length] = np.arange(0, len(tokens), self._length)
        positions = (np.arange(len(tokens)) - np.maximum.accumulate(begins)).astype(POSITIONS)
        shape = (-1, self._length)
        return Rows(tokens.reshape(shape), positions.reshape(shape), (positions != 0).astype(TARGETS).reshape(shape))


def fit(example: Example, length: int) -> Example | None:
    """The example as it goes into a row: whole, or its answer cut; None where no token of an answer would be left.

    The prompt is never cut: an answer to half a question would be a wrong one.
    """
    targets = example.targets[:length]
    if not any(targets[1:]):
        return None
    return Example(example.tokens[:length], targets)


def pack_whole(examples: Iterable[Example], length: int, padding: int, open_rows: int = OPEN_ROWS) -> Iterator[PackedRow]:
    """Rows of whole examples, none longer than `length`.

    Each goes into the open row that it leaves fullest; where none has room a new one is opened, and the fullest of more
    than `open_rows` is given out. Ties go to the older row.
    """
    rows: list[_Row] = []
    for example in examples:
        if len(example.tokens) > length:
            raise ValueError(f"an example of {len(example.tokens)} tokens does not fit a row of {length}: call fit() first")
        fitting = [row for row in rows if row.space >= len(example.tokens)]
        if fitting:
            row = min(fitting, key=lambda candidate: candidate.space)
        else:
            row = _Row(length, padding)
            rows.append(row)
        row.add(example.tokens, example.targets)
        if not row.space or len(rows) > open_rows:
            fullest = min(rows, key=lambda candidate: candidate.space)
            rows.remove(fullest)
            yield fullest.pack()
    for row in rows:
        yield row.pack()


@dataclass(eq=False)  # rows are told apart by identity
class _Row:
    """A row that is being filled."""

    length: int
    padding: int
    used: int = 0
    pieces: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]] = field(default_factory=list)

    @property
    def space(self) -> int:
        return self.length - self.used

    def add(self, tokens: Sequence[int], targets: Sequence[int] | None = None) -> None:
        """Appends a piece; all of it counts when `targets` is None, and its first token never does."""
        mask = np.ones(len(tokens), TARGETS) if targets is None else np.array(targets, TARGETS)
        mask[:1] = 0
        self.pieces.append((np.asarray(tokens, TOKENS), mask))
        self.used += len(tokens)

    def pack(self) -> PackedRow:
        """The row, filled up with padding that is a piece of its own: it counts nowhere and no document reaches into it."""
        space = self.space
        pieces = [*self.pieces, (np.full(space, self.padding, TOKENS), np.zeros(space, TARGETS))]
        positions = [np.arange(len(tokens), dtype=POSITIONS) for tokens, _ in pieces]
        tokens, targets = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        return PackedRow(tokens, np.concatenate(positions), targets, self.used)

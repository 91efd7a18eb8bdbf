"""Packing: nothing is lost, repeated or moved, and what counts in the loss is what should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_trainer.packing import Example, StreamPacker, fit, pack_stream, pack_whole
from transfer_trainer.store import PackedRow

PADDING = 0
lengths = st.integers(min_value=1, max_value=12)


def numbered(sizes: list[int]) -> list[list[int]]:
    """Documents in which every token of the corpus has its own number, from 1."""
    ends = np.cumsum([0, *sizes])
    return [list(range(start + 1, end + 1)) for start, end in itertools.pairwise(ends)]


@given(sizes=st.lists(st.integers(0, 30), max_size=20), length=lengths)
@settings(max_examples=60)
def test_a_stream_keeps_every_token_once_and_in_order(sizes: list[int], length: int) -> None:
    documents = numbered(sizes)
    rows = list(pack_stream(documents, length, PADDING))
    assert [token for row in rows for token in row.tokens_T[: row.used]] == [token for document in documents for token in document]
    assert all(len(row.tokens_T) == len(row.positions_T) == len(row.targets_T) == length for row in rows)
    assert all(row.used == length for row in rows[:-1])


@given(sizes=st.lists(st.integers(1, 30), max_size=20), length=lengths)
@settings(max_examples=60)
def test_positions_begin_anew_with_a_document_and_a_row_and_a_first_token_is_no_target(sizes: list[int], length: int) -> None:
    firsts = {document[0] for document in numbered(sizes)}
    for row in pack_stream(numbered(sizes), length, PADDING):
        for place in range(row.used):
            begins = place == 0 or row.tokens_T[place] in firsts
            assert row.positions_T[place] == (0 if begins else row.positions_T[place - 1] + 1)
            assert row.targets_T[place] == (not begins)
        assert not row.targets_T[row.used :].any()
        assert (row.tokens_T[row.used :] == PADDING).all()


def test_a_stream_is_cut_and_padded_as_drawn() -> None:
    rows = list(pack_stream([[1, 2, 3], [4, 5, 6, 7]], 5, 9))
    assert [row.tokens_T.tolist() for row in rows] == [[1, 2, 3, 4, 5], [6, 7, 9, 9, 9]]
    assert [row.positions_T.tolist() for row in rows] == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert [row.targets_T.tolist() for row in rows] == [[0, 1, 1, 0, 1], [0, 1, 0, 0, 0]]


@given(sizes=st.lists(st.integers(1, 30), max_size=20), length=lengths, cut=st.integers(1, 40))
@settings(max_examples=60)
def test_packing_in_blocks_gives_the_rows_of_packing_one_by_one(sizes: list[int], length: int, cut: int) -> None:
    plain = list(pack_stream(numbered(sizes), length, PADDING))
    tokens = np.arange(1, sum(sizes) + 1, dtype=np.uint32)
    starts = np.cumsum([0, *sizes])[:-1].astype(np.int64) if sizes else np.empty(0, np.int64)
    packer, blocks, used = StreamPacker(length, PADDING), [], 0
    for begin in range(0, len(tokens), cut):
        inside = starts[(starts >= begin) & (starts < begin + cut)] - begin
        blocks.append(packer.add(tokens[begin : begin + cut], inside))
    last, used = packer.finish()
    blocks.append(last)
    for block, row in (("tokens_BT", "tokens_T"), ("positions_BT", "positions_T"), ("targets_BT", "targets_T")):
        found = [array.tolist() for rows in blocks for array in getattr(rows, block)]
        assert found == [getattr(one, row).tolist() for one in plain]
    assert used == (plain[-1].used if plain and plain[-1].used < length else 0)


def pieces(row: PackedRow) -> list[tuple[list[int], list[int]]]:
    """The examples of a row, found by where positions begin anew."""
    starts = [place for place in range(row.used) if row.positions_T[place] == 0]
    return [
        (row.tokens_T[start:end].tolist(), row.targets_T[start:end].tolist())
        for start, end in zip(starts, [*starts[1:], row.used], strict=True)
    ]


@given(sizes=st.lists(st.integers(2, 12), max_size=40), open_rows=st.integers(1, 4), data=st.data())
@settings(max_examples=60)
def test_whole_examples_are_each_packed_once_and_never_parted(sizes: list[int], open_rows: int, data: st.DataObject) -> None:
    examples = [
        Example(tokens, data.draw(st.lists(st.integers(0, 1), min_size=len(tokens), max_size=len(tokens)))) for tokens in numbered(sizes)
    ]
    rows = list(pack_whole(examples, 12, PADDING, open_rows))
    found = sorted(piece for row in rows for piece in pieces(row))
    assert found == sorted((list(example.tokens), [0, *example.targets[1:]]) for example in examples)
    assert all(len(row.tokens_T) == 12 and not row.targets_T[row.used :].any() for row in rows)
    again = list(pack_whole(examples, 12, PADDING, open_rows))
    assert [row.tokens_T.tolist() for row in again] == [row.tokens_T.tolist() for row in rows]


def test_an_example_goes_where_it_leaves_least_room() -> None:
    examples = [Example([number] * size, [1] * size) for number, size in enumerate([6, 7, 3, 4], start=1)]
    rows = sorted(row.tokens_T.tolist() for row in pack_whole(examples, 10, PADDING))
    assert rows == [[1] * 6 + [4] * 4, [2] * 7 + [3] * 3]


@pytest.mark.parametrize(
    ("targets", "length", "expected"),
    [
        pytest.param([0, 0, 1, 1], 4, [0, 0, 1, 1], id="an example that fits stays whole"),
        pytest.param([0, 0, 1, 1], 3, [0, 0, 1], id="a long answer is cut"),
        pytest.param([0, 0, 1, 1], 2, None, id="a prompt that fills the row is dropped"),
        pytest.param([0, 0, 0, 0], 4, None, id="an example without an answer is dropped"),
        pytest.param([1, 0, 0, 0], 4, None, id="a first token alone is nothing to predict"),
    ],
)
def test_examples_are_fitted_to_a_row(targets: list[int], length: int, expected: list[int] | None) -> None:
    fitted = fit(Example([5, 6, 7, 8], targets), length)
    assert fitted == (None if expected is None else Example([5, 6, 7, 8][:length], expected))


def test_an_example_longer_than_a_row_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="fit"):
        list(pack_whole([Example([1, 2, 3], [0, 1, 1])], 2, PADDING))

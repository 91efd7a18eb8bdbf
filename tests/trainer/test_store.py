"""The row store: what was written is read back, and a store that is not whole is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from transfer_api.errors import ArtifactError
from transfer_trainer.packing import pack_stream
from transfer_trainer.store import RowStore, RowWriter, SourceIndex


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = RowWriter(tmp_path / "rows", sequence_length=4, seed=7, tokenizer="abc")
    with writer.source("one", 3) as source:
        for row in pack_stream([[1, 2, 3, 4, 5], [2**32 - 1, 7]], 4, 9):
            source.append(row)
        source.count(documents=2, bytes=20)
    with writer.source("none", 0):
        pass
    writer.finish()
    return tmp_path / "rows"


def test_rows_are_read_in_the_order_asked_for(folder: Path) -> None:
    rows = RowStore.open(folder).row(0, np.array([1, 0, 1]))
    assert rows.tokens_BT.tolist() == [[5, 2**32 - 1, 7, 9], [1, 2, 3, 4], [5, 2**32 - 1, 7, 9]]
    assert rows.positions_BT.tolist() == [[0, 0, 1, 0], [0, 1, 2, 3], [0, 0, 1, 0]]
    assert rows.targets_BT.tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0]]
    assert (rows.tokens_BT.dtype, rows.positions_BT.dtype, rows.targets_BT.dtype) == (np.uint32, np.int32, np.uint8)
    rows.tokens_BT[0, 0] = 0  # a copy, not the file


def test_the_index_counts_real_tokens_and_targets(folder: Path) -> None:
    store = RowStore.open(folder)
    assert store.sequence_length == 4
    assert store.tokenizer == "abc"
    assert store.sources == [
        SourceIndex("one", 3, rows=2, tokens=7, targets=4, documents=2, bytes=20),
        SourceIndex("none", 0, rows=0, tokens=0, targets=0, documents=0, bytes=0),
    ]


def test_padding_counts_as_the_sources_are_drawn(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "rows", sequence_length=4, seed=7, tokenizer="abc")
    for name, weight, document in (("half", 3, [1, 2]), ("full", 1, [1, 2, 3, 4]), ("unused", 0, [1])):
        with writer.source(name, weight) as source:
            for row in pack_stream([document], 4, 9):
                source.append(row)
    writer.finish()
    assert RowStore.open(tmp_path / "rows").padding_ratio == 3 / 4 * 1 / 2


def test_a_source_without_rows_is_read(folder: Path) -> None:
    assert RowStore.open(folder).row(1, np.array([], dtype=np.int64)).tokens_BT.shape == (0, 4)


def test_the_files_are_plain_little_endian_arrays(folder: Path) -> None:
    assert np.fromfile(folder / "0.tokens", "<u4").reshape(-1, 4)[0].tolist() == [1, 2, 3, 4]
    assert json.loads((folder / "index.json").read_text())["seed"] == 7


@pytest.mark.parametrize("name", ["0.tokens", "0.positions", "0.targets"])
def test_a_file_cut_short_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=f"{name} has"):
        RowStore.open(folder)


@pytest.mark.parametrize("content", [None, "", "[]", '{"sequence_length": 4}'], ids=["missing", "empty", "a list", "without sources"])
def test_an_unreadable_index_is_refused(folder: Path, content: str | None) -> None:
    (folder / "index.json").unlink()
    if content is not None:
        (folder / "index.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"index\.json"):
        RowStore.open(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "0.targets").unlink()
    with pytest.raises(ArtifactError, match=r"0\.targets is missing"):
        RowStore.open(folder)

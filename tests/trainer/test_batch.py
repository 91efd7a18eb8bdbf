"""Rows are read one step ahead, and are those that each step reads by itself."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.support.pods import ORDER, ROWS_PER_STEP, make_dataset
from transfer_api.stage import StageKind
from transfer_pod.artifact import ArtifactStore
from transfer_trainer.batch import Batch, BatchReader
from transfer_trainer.parallel import Team
from transfer_trainer.store import Rows, RowStore

TEAM = Team(rank=1, world_size=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ArtifactStore(tmp_path).path(StageKind.DATASET, make_dataset(tmp_path)) / "rows"


def plain(store: RowStore, step: int) -> Batch:
    return Batch.read(store, ORDER.share(step, ROWS_PER_STEP, TEAM.rank, TEAM.world_size))


def same(one: Batch, other: Batch) -> bool:
    names = ("tokens_BT", "positions_BT", "targets_BT")
    return one.checksum == other.checksum and all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_batches_read_ahead_are_those_of_their_step_also_after_going_back(folder: Path) -> None:
    store = RowStore.open(folder)
    reader = BatchReader(store, ORDER, ROWS_PER_STEP, 10, TEAM)
    for step in (0, 1, 2, 3, 1, 2, 7, 8, 9, 0, 9):
        assert same(reader.read(step), plain(store, step)), f"step {step}"
    assert not same(plain(store, 0), plain(store, 1))


def test_the_next_batch_is_read_before_it_is_asked_for_and_none_past_the_end(folder: Path) -> None:
    asked, told = threading.Semaphore(0), []

    class Watched(RowStore):
        def row(self, source: int, rows: npt.NDArray[np.integer[Any]]) -> Rows:
            found = super().row(source, rows)
            told.append(len(rows))
            asked.release()
            return found

    store = Watched.open(folder)
    whole = BatchReader(store, ORDER, ROWS_PER_STEP, 2, Team())
    whole.read(0)
    read = 0
    while read < 2 * ROWS_PER_STEP:
        assert asked.acquire(timeout=30), "nobody reads the rows of the next step"
        read = sum(told)
    whole.read(1)
    assert sum(told) == 2 * ROWS_PER_STEP


def test_what_goes_wrong_in_reading_ahead_is_told_when_the_step_comes(folder: Path) -> None:
    class Broken(RowStore):
        def row(self, source: int, rows: npt.NDArray[np.integer[Any]]) -> Rows:
            if threading.current_thread() is not threading.main_thread():
                raise OSError("the storage is gone")
            return super().row(source, rows)

    reader = BatchReader(Broken.open(folder), ORDER, ROWS_PER_STEP, 10, TEAM)
    reader.read(0)
    with pytest.raises(OSError, match="the storage is gone"):
        reader.read(1)

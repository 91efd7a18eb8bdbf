"""The rows of one process in a step, and the thread that reads those of the next step while this one computes.

Which rows a step has is a function of its number (rows.py), so reading ahead needs no state: a batch that was read for another step than
the one that comes, as after going back to a checkpoint, is dropped. From memory a process reads 40M tokens/s, far more than a GPU trains.
But rows lie all over files that may be larger than memory, three files to a row: from a storage that takes 1 ms to answer, 64K tokens
took 237 ms, and 0.2 ms with the thread, beside a step of 300 ms. (numpy lets other threads run meanwhile. Asking the kernel to read
ahead, MADV_WILLNEED, hid a third: it passes requests over when there are many.)

B rows of a pass, T tokens in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from transfer_trainer.parallel import Team
from transfer_trainer.rows import RowIds, RowOrder
from transfer_trainer.store import RowStore


@dataclass(frozen=True)
class Batch:
    """Rows of one worker in one step: int64, int64 and bool, each [B, T]."""

    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    targets_BT: torch.Tensor
    checksum: int
    """Of the rows that were read."""

    @classmethod
    def read(cls, store: RowStore, ids: RowIds) -> Batch:
        """Reads rows in the given order, source by source."""
        shape = (len(ids), store.sequence_length)
        tokens, positions, targets = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
        for source in np.unique(ids.sources):
            at = ids.sources == source
            rows = store.row(int(source), ids.rows[at])
            tokens[at], positions[at], targets[at] = rows.tokens_BT, rows.positions_BT, rows.targets_BT != 0
        return cls(torch.from_numpy(tokens), torch.from_numpy(positions), torch.from_numpy(targets), ids.checksum())

    @property
    def labels(self) -> int:
        """Labels that count: a first column has nothing to be predicted from."""
        return int(self.targets_BT[:, 1:].sum())

    @property
    def pairs(self) -> int:
        """Pairs of a token and one that it sees: those before it in its document, and itself."""
        return int(self.positions_BT.sum()) + self.positions_BT.numel()

    def passes(self, rows: int, number: int, device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
        """Exactly `number` pieces of at most `rows` rows: tokens, positions, targets, and the weight [B] of each row.

        Pieces past the end are one blank row of weight 0.
        """
        for index in range(number):
            piece = slice(index * rows, (index + 1) * rows)
            tokens, positions, targets = self.tokens_BT[piece], self.positions_BT[piece], self.targets_BT[piece]
            weight = torch.ones(len(tokens))
            if not len(tokens):
                length = self.tokens_BT.shape[1]
                tokens, positions = torch.zeros(1, length, dtype=torch.int64), torch.arange(length)[None]
                targets, weight = torch.ones(1, length, dtype=torch.bool), torch.zeros(1)
            yield tokens.to(device), positions.to(device), targets.to(device), weight.to(device)


class BatchReader:
    """Reads batches, one ahead.

    Args:
        store: the rows.
        order: in which the run reads them.
        rows_per_step: of all processes.
        steps: of the run; none is read past it.
        team: whose share is read.
    """

    def __init__(self, store: RowStore, order: RowOrder, rows_per_step: int, steps: int, team: Team) -> None:
        self._store, self._order, self._rows_per_step, self._steps, self._team = store, order, rows_per_step, steps, team
        self._thread = ThreadPoolExecutor(1, "rows")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def read(self, step: int) -> Batch:
        """The batch of step `step` (from 0); that of the next one is begun."""
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self._read(step)
        if step + 1 < self._steps:
            self._ahead = step + 1, self._thread.submit(self._read, step + 1)
        return batch

    def _read(self, step: int) -> Batch:
        return Batch.read(self._store, self._order.share(step, self._rows_per_step, self._team.rank, self._team.world_size))

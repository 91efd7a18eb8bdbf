"""One of several processes that save a sharded model: `python -m tests.support.saving FOLDER`. Imports little, so that it starts soon."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from transfer_trainer.checkpoint import Checkpoints
from transfer_trainer.ema import Ema
from transfer_trainer.fence import Fence, Term
from transfer_trainer.parallel import Team, shard
from transfer_trainer.worker import End, is_peer_loss

TERM = Term("lineage", 1, 0, "store")


class Model(nn.Module):
    """Layers whose rows divide unevenly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            rows = layer(rows)
        return rows


class Run:
    """One process of a round."""

    def __init__(self, folder: Path, team: Team) -> None:
        self.model = shard(Model(), team)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        fence = Fence.take(folder, TERM, team.round) if team.rank == 0 else None
        self.ema = Ema(self.model, 0.5)
        self.checkpoints = Checkpoints(folder / "checkpoints", "key", team, fence, ema=self.ema)

    def train(self) -> None:
        self.model(torch.ones(2, 5)).square().sum().backward()
        self.checkpoints.settle()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()


def main(folder: Path) -> None:
    """What a worker does: a save, one beside training, and one that is never committed."""
    team = Team.join()
    run = Run(folder, team)
    for step in (1, 2):
        run.train()
        run.checkpoints.begin(step, run.model, run.optimizer)
        run.train()  # changes the weights while they are written
        run.checkpoints.finish()
        run.checkpoints.load(run.model, run.optimizer)

    def hold() -> None:
        (folder / "written").touch()
        time.sleep(600)

    run.train()
    run.checkpoints.begin(3, run.model, run.optimizer, hold)
    (folder / f"waits-{team.rank}").touch()
    code = 1
    try:
        run.checkpoints.finish()
    except BaseException as error:
        code = End.PEER_LOST if is_peer_loss(error) else 1
        raise
    finally:
        os._exit(code)  # as the worker does: the thread that writes does not hold it up


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""One of two processes whose rows want gradients of other layers: `python -m tests.support.experts FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from transfer_trainer.parallel import Team
from transfer_trainer.replicas import Replicas


def main(folder: Path) -> None:
    """Two passes, each through one of four layers: both processes the first, each one of its own, none the last; tells the gradients."""
    team = Team.join()
    layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(4))
    replicas = Replicas(layers, bucket_bytes=8)  # two of a bucket
    replicas.begin()
    for number, used in enumerate((0, 1 + team.rank)):
        if number == 1:
            replicas.last()
        (10**team.rank * layers[used](torch.ones(1, 1))).sum().backward()
    replicas.finish()
    found = [None if layer.weight.grad is None else float(layer.weight.grad) for layer in layers]  # type: ignore[union-attr]
    (folder / f"{team.rank}").write_text(repr(found))
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

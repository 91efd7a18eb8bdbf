"""Processes that train a stage together up to a step, without pods: what a launcher would have started, and asked to stop."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.warm import Process
from transfer_api.stage import StagePlan
from transfer_cli.local import free_port
from transfer_pod.context import PodContext


def together(module: str, *arguments: str, processes: int, number: int = 0) -> None:
    """Runs a module in so many processes of one group; `number` is that of the round."""
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"TRANSFER_ROUND": str(number), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TRANSFER_COLLECTIVE_TIMEOUT": "60"}
    team = [
        Process(module, {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, arguments)
        for rank in range(processes)
    ]  # fmt: skip
    try:
        assert [process.wait(240) for process in team] == [0] * processes
    finally:
        for process in team:
            process.kill()


def train(folder: Path, stage: StagePlan, processes: int, *, until: int | None = None, number: int = 0) -> None:
    """Trains to the end, or until a step after which all is saved."""
    together("tests.support.team", str(folder), stage.model_dump_json(), str(until or -1), processes=processes, number=number)


def main(folder: Path, stage: StagePlan, until: int) -> None:
    """What each of them does."""
    from transfer_trainer.loop import Training
    from transfer_trainer.parallel import Team

    team = Team.join()
    training = Training(PodContext(stage=stage, storage=folder, pod="pod"), team, lambda: training.step == until, lambda progress: None)
    assert training.run() is (until < 0)
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), StagePlan.model_validate_json(sys.argv[2]), int(sys.argv[3]))

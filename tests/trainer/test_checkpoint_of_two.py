"""Two processes of a sharded model save beside training; one is killed when all is written and nothing committed yet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.experiment import wait_for
from tests.support.saving import Run
from transfer_cli.local import free_port
from transfer_trainer.parallel import Team
from transfer_trainer.worker import End


@pytest.mark.parametrize("victim", [0, 1], ids=["the one that commits", "another"])
def test_who_dies_while_a_checkpoint_is_written_ends_the_round_and_the_one_before_is_used(tmp_path: Path, victim: int) -> None:
    port = free_port()
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TRANSFER_ROUND": "0", "CUDA_VISIBLE_DEVICES": ""}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TRANSFER_COLLECTIVE_TIMEOUT": "60"}
    workers = [
        subprocess.Popen([sys.executable, "-m", "tests.support.saving", str(tmp_path)], env=os.environ | shared | {"RANK": str(rank)})
        for rank in range(2)
    ]

    def written() -> bool:
        assert all(worker.poll() is None for worker in workers), "a worker has ended"
        return all((tmp_path / name).exists() for name in ("written", "waits-0", "waits-1"))

    try:
        wait_for(written, 280, "everything is written")
        workers[victim].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        assert workers[1 - victim].wait(60) == End.PEER_LOST
        assert time.monotonic() - begin < 20, "the other waited for a time-out"
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    (tmp_path / "steady").mkdir()
    steady = Run(tmp_path / "steady", Team())
    steady.train()
    steady.train()
    resumed = Run(tmp_path, Team(round=1))
    assert resumed.checkpoints.load(resumed.model, resumed.optimizer) == 2
    for expected, got in zip(steady.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    with steady.ema.applied(), resumed.ema.applied():  # what two processes averaged, one goes on with
        for expected, got in zip(steady.model.parameters(), resumed.model.parameters(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    resumed.train()
    resumed.checkpoints.begin(3, resumed.model, resumed.optimizer)
    resumed.checkpoints.finish()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]

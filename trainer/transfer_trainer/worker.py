"""One process of a training pod, forked for each round (workers.py).

It is told what the launcher wants by files in TRANSFER_RUN_FOLDER, looked at before each step (a signal could come before
Python can handle it), and tells how it ended by its exit code.

    0     the artifact is in place                    76    saved, the membership is about to change
    10    cannot work (error-<rank>.json says why)    77    a peer is gone
    11    a checkpoint or artifact is unreadable       1    crashed
    75    saved, this pod leaves                      78    others have taken the stage over

The launcher kills one that hangs (watchdog.py), which counts as 79.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import traceback
from collections.abc import Mapping
from pathlib import Path

from transfer_api.errors import ExitCode, TransferError
from transfer_pod.artifact import storage_errors, write_atomically
from transfer_pod.context import PodContext
from transfer_pod.memory import memory_limit
from transfer_pod.server import ProgressFile
from transfer_trainer.oom import memory_advice
from transfer_trainer.process import die_with_parent
from transfer_trainer.watchdog import FLOOR, FLOOR_SECONDS, Pulse, dump_when_asked, pulse_file, stacks_file

RUN_FOLDER = "TRANSFER_RUN_FOLDER"
LEAVE, REGROUP, PROGRESS = "leave", "regroup", "progress.json"
ERROR, LOST = "error", "lost"
"""What the word is about that a worker leaves: a fault of its own, or of another."""
_PEER_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe", "recvvalue", "socket")


class End(enum.IntEnum):
    """Exit codes between worker and launcher, besides those of `ExitCode`."""

    CRASHED = 1
    REGROUP = 76
    PEER_LOST = 77
    HUNG = 79


def main() -> int:
    """Runs this process's part of a round and returns its exit code."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    folder = Path(os.environ[RUN_FOLDER])
    context = PodContext.read()
    try:
        with storage_errors(context.storage):
            return _train(context, folder)
    except TransferError as error:
        _explain(folder, error)
        return int(error.exit_code)
    except BaseException as error:  # torch's CheckpointException is none of Exception
        if (advice := out_of_memory(error, context)) is not None:
            traceback.print_exc()
            explain(folder, int(os.environ.get("LOCAL_RANK", "0")), "OutOfMemory", advice)
            return End.CRASHED
        if is_peer_loss(error):
            logging.getLogger(__name__).warning("a peer is gone: %s", str(error).splitlines()[0] if str(error) else error)
            _explain(folder, error, LOST)
            return End.PEER_LOST
        traceback.print_exc()
        _explain(folder, error)
        return End.CRASHED


def _train(context: PodContext, folder: Path) -> int:
    from transfer_trainer.clock import compare_clocks
    from transfer_trainer.loop import Training
    from transfer_trainer.parallel import Team

    rank = int(os.environ.get("LOCAL_RANK", "0"))
    dump_when_asked(stacks_file(folder, rank))
    team = Team.join()
    compare_clocks(team)
    file = ProgressFile(folder / PROGRESS)
    pulse = Pulse(pulse_file(folder, rank), float(os.environ.get(FLOOR, FLOOR_SECONDS)))
    done = Training(context, team, lambda: (folder / LEAVE).exists() or (folder / REGROUP).exists(), file.write, pulse).run()
    team.leave()
    if done:
        return ExitCode.COMPLETE
    return ExitCode.SAVED if (folder / LEAVE).exists() else End.REGROUP


def out_of_memory(error: BaseException, context: PodContext, environment: Mapping[str, str] = os.environ) -> str | None:
    """What to set where torch found no memory; None for any other error."""
    import torch

    gpu = isinstance(error, torch.OutOfMemoryError)
    if not gpu and "DefaultCPUAllocator" not in str(error):
        return None
    if gpu:
        available = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    else:
        available = memory_limit() // int(environment.get("LOCAL_WORLD_SIZE", "1"))
    advice = memory_advice(context, processes=int(environment.get("WORLD_SIZE", "1")), available=available, gpu=gpu)
    return f"out of memory{' on the GPU' if gpu else ''}: {advice}"


def is_peer_loss(error: BaseException) -> bool:
    """Whether an error means that another process is gone, or that a newer round has taken over; not a fault of this one."""
    from torch.distributed import DistError
    from torch.distributed.checkpoint.api import CheckpointException

    from transfer_trainer.fence import FencedError

    if isinstance(error, CheckpointException):
        return any(is_peer_loss(failure) for failure, _ in error.failures.values())
    # gloo raises plain RuntimeErrors; their text is all there is.
    lost = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _PEER_WORDS)
    return lost or isinstance(error, (DistError, FencedError))


def _explain(folder: Path, error: BaseException, kind: str = ERROR) -> None:
    message = str(error) if isinstance(error, TransferError) else f"{type(error).__name__}: {error}"
    explain(folder, int(os.environ.get("LOCAL_RANK", "0")), type(error).__name__, message, kind)


def explain(folder: Path, rank: int, reason: str, message: str, kind: str = ERROR) -> None:
    """Leaves word for the launcher why the worker with this local rank ended."""
    write_atomically(folder / f"{kind}-{rank}.json", json.dumps({"reason": reason, "message": message}))

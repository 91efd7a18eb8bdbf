"""One process of a training pod, forked for each round (workers.py).

It is told what the launcher wants by files in TRANSFER_RUN_FOLDER, looked at before each step (a signal could come before
Python can handle it), and tells how it ended by its exit code.

    0     the artifact is in place                    76    saved, the membership is about to change
    10    cannot work (error-<rank>.json says why)    77    a peer is gone
    11    a checkpoint or artifact is unreadable       1    crashed
    75    saved, this pod leaves                      78    others have taken the stage over
"""

from __future__ import annotations

import enum
import json
import logging
import os
import traceback
from pathlib import Path

from transfer_api.errors import ExitCode, TransferError
from transfer_pod.artifact import storage_errors, write_atomically
from transfer_pod.context import PodContext
from transfer_pod.server import ProgressFile
from transfer_trainer.process import die_with_parent

RUN_FOLDER = "TRANSFER_RUN_FOLDER"
LEAVE, REGROUP, PROGRESS = "leave", "regroup", "progress.json"
_PEER_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe", "recvvalue", "socket")


class End(enum.IntEnum):
    """Exit codes between worker and launcher, besides those of `ExitCode`."""

    CRASHED = 1
    REGROUP = 76
    PEER_LOST = 77


def main() -> int:
    """Runs this process's part of a round and returns its exit code."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    folder = Path(os.environ[RUN_FOLDER])
    try:
        context = PodContext.read()
        with storage_errors(context.storage):
            return _train(context, folder)
    except TransferError as error:
        _explain(folder, error)
        return int(error.exit_code)
    except BaseException as error:  # torch's CheckpointException is none of Exception
        if is_peer_loss(error):
            logging.getLogger(__name__).warning("a peer is gone: %s", str(error).splitlines()[0] if str(error) else error)
            return End.PEER_LOST
        traceback.print_exc()
        _explain(folder, error)
        return End.CRASHED


def _train(context: PodContext, folder: Path) -> int:
    from transfer_trainer.loop import Training
    from transfer_trainer.parallel import Team

    team = Team.join()
    file = ProgressFile(folder / PROGRESS)
    done = Training(context, team, lambda: (folder / LEAVE).exists() or (folder / REGROUP).exists(), file.write).run()
    team.leave()
    if done:
        return ExitCode.COMPLETE
    return ExitCode.SAVED if (folder / LEAVE).exists() else End.REGROUP


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


def _explain(folder: Path, error: BaseException) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")
    message = str(error) if isinstance(error, TransferError) else f"{type(error).__name__}: {error}"
    write_atomically(folder / f"error-{rank}.json", json.dumps({"reason": type(error).__name__, "message": message}))

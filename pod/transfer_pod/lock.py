"""Keeps two runs on one machine from making the same stage at the same time: right, but twice the work.

A run that is to start pods of a stage takes the lock first; another run waits until the artifact is there, or until the first
has stopped or died: the kernel lets go of the lock with the process, whatever happens to it. On a cluster no lock is needed: there
the operator lets one experiment make a stage and the others wait for it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from transfer_api.stage import StagePlan
from transfer_pod.artifact import storage_errors


class FileLock:
    """A right that one process has at a time; the kernel takes it back when the process ends.

    Args:
        path: of the lock file, made with its folder where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self) -> bool:
        """Takes the lock unless another process holds it; asking again is harmless.

        Raises:
            StorageError: the storage is full or read-only.
        """
        if self._file is not None:
            return True
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError:
            pass  # a file system without locks: the work may be done twice, and is right all the same
        self._file = file
        return True

    def release(self) -> None:
        """Lets go of the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class StageLock(FileLock):
    """The right to make one stage in one storage.

    The file stands beside the stage's work folder, not in it: that folder goes when the stage is done, and a lock on a file
    that is gone keeps nobody out.
    """

    def __init__(self, storage: Path, stage: StagePlan) -> None:
        super().__init__(storage / "work" / stage.kind.value / f"{stage.key}.lock")

"""What ties the processes of a pod together: a child never outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
DIE_WITH_PARENT = "TRANSFER_DIE_WITH"
"""Environment variable: process id of the parent without which this process is to be killed."""


def die_with_parent() -> None:
    """Has the kernel kill this process when the parent named in the environment dies, however it dies."""
    parent = os.environ.get(DIE_WITH_PARENT)
    if parent is not None:
        follow_parent(int(parent))


def follow_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent, of that process id, dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)

"""Imports of thousands of modules, without the collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Holds cyclic garbage collection back while modules are imported, and leaves them out of every later collection.

    The collector would walk all that was imported again and again and find nothing: a sixth of the time that torch, transformers
    and peft take. And what it never touches stays shared between a process and those that it forks.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

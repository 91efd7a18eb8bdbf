"""Something that goes on beside a test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def meanwhile(work: Callable[[threading.Event], None], pause: float) -> Iterator[None]:
    """Does something in a thread again and again, `pause` seconds before each time, until the block ends.

    Args:
        work: is given the event that is set then, for what it waits for itself.
        pause: seconds.
    """
    over = threading.Event()

    def again() -> None:
        while not over.wait(pause):
            work(over)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
